"""BERT, RoBERTa / XLM-R, DistilBERT and ELECTRA: one post-norm encoder, four ways of naming its tensors and reading its config.

What differs between them (positions, token types, an embedding projection, a pooler, the head) is a field of `Encoder`, not a
subclass of the module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxtune.core.errors import ModelError
from jaxtune.layers.activations import ACTIVATIONS
from jaxtune.layers.dropout import Dropout, dropout
from jaxtune.layers.linear import Embedding, Linear
from jaxtune.layers.norm import LayerNorm
from jaxtune.layers.self_attention import SelfAttention
from jaxtune.layers.stack import Stack, StackOptions
from jaxtune.models.family import DropoutRates, Family, Features, words
from jaxtune.models.heads import DenseHead, LinearHead
from jaxtune.models.weights import Weight, linear, norm
from jaxtune.parallel.placement import constrain


@dataclass(frozen=True)
class Encoder:
    """Sizes and switches of one encoder."""

    vocabulary: int
    positions: int
    token_types: int  # 0: the family has none
    embedding_width: int
    width: int
    layers: int
    heads: int
    mlp: int
    activation: str
    epsilon: float
    deviation: float
    pad: int | None  # RoBERTa counts positions of real tokens from pad + 1; None: positions are 0, 1, 2, ...
    pooler: bool  # tanh(dense(first token)), or the first token itself
    drop_attention_output: bool = True


class Block(nnx.Module):
    """x = norm(x + attention(x)); x = norm(x + mlp(x))."""

    def __init__(self, c: Encoder, *, options: StackOptions, rngs: nnx.Rngs):
        self.attn = SelfAttention(c.width, c.heads, deviation=c.deviation, implementation=options.attention, rngs=rngs)
        self.attn_norm = LayerNorm(c.width, epsilon=c.epsilon, rngs=rngs)
        self.up = Linear(c.width, c.mlp, deviation=c.deviation, rngs=rngs)
        self.down = Linear(c.mlp, c.width, deviation=c.deviation, rngs=rngs)
        self.mlp_norm = LayerNorm(c.width, epsilon=c.epsilon, rngs=rngs)
        self.activation = c.activation
        self.drop_attention_output = c.drop_attention_output

    def __call__(self, x: Float[Array, "B T D"], segment_ids: Int[Array, "B T"], *, noise: Dropout | None) -> Float[Array, "B T D"]:
        y = self.attn(x, segment_ids, noise)
        if self.drop_attention_output:
            y = dropout(y, noise, "attn.out")
        x = constrain(self.attn_norm(x + y), "batch", "token", None)
        h = constrain(ACTIVATIONS[self.activation](self.up(x)), "batch", "token", "mlp")
        return constrain(self.mlp_norm(x + dropout(self.down(h), noise, "mlp.out")), "batch", "token", None)


class Embeddings(nnx.Module):
    def __init__(self, c: Encoder, *, rngs: nnx.Rngs):
        self.token = Embedding(c.vocabulary, c.embedding_width, deviation=c.deviation, rngs=rngs)
        self.position = Embedding(c.positions, c.embedding_width, deviation=c.deviation, rngs=rngs)
        self.type = Embedding(c.token_types, c.embedding_width, deviation=c.deviation, rngs=rngs) if c.token_types else None
        self.norm = LayerNorm(c.embedding_width, epsilon=c.epsilon, rngs=rngs)
        self.project = Linear(c.embedding_width, c.width, deviation=c.deviation, rngs=rngs) if c.embedding_width != c.width else None
        self.pad = c.pad

    def __call__(self, batch: Mapping[str, jax.Array], noise: Dropout | None, dtype: Any) -> Float[Array, "B T D"]:
        tokens = batch["tokens"]
        if "positions" in batch:
            positions = batch["positions"] if self.pad is None else batch["positions"] + self.pad + 1
        elif self.pad is None:
            positions = jnp.arange(tokens.shape[1])[None]
        else:
            real = (tokens != self.pad).astype(jnp.int32)
            positions = jnp.cumsum(real, axis=1) * real + self.pad
        x = self.token(tokens) + self.position(positions)
        if self.type is not None:
            types = batch.get("token_types")
            x = x + (self.type(types) if types is not None else self.type(jnp.zeros((1, 1), jnp.int32)))
        x = dropout(self.norm(x.astype(dtype)), noise, "embeddings")
        return x if self.project is None else self.project(x)


class EncoderModel(nnx.Module):
    """tokens, segment_ids [, token_types, positions] -> Features."""

    def __init__(self, c: Encoder, *, options: StackOptions, dtype: Any, rngs: nnx.Rngs):
        self.embeddings = Embeddings(c, rngs=rngs)
        self.layers = Stack(lambda rngs: Block(c, options=options, rngs=rngs), c.layers, options=options, rngs=rngs)
        self.pooler = Linear(c.width, c.width, deviation=c.deviation, rngs=rngs) if c.pooler else None
        self.head: nnx.Module | None = nnx.data(None)
        self.dtype = jnp.dtype(dtype)

    def __call__(self, batch: Mapping[str, jax.Array], noise: Dropout | None = None, training: bool = False) -> Features:
        x = constrain(self.embeddings(batch, noise, self.dtype), "batch", "token", None)
        x = self.layers(x, batch["segment_ids"], noise=noise)
        first = x[:, 0]
        return Features(first if self.pooler is None else jnp.tanh(self.pooler(first)), x)


class Bert(Family):
    """BERT: learned positions from 0, token types, a tanh pooler, one product as head."""

    model_type: ClassVar = "bert"
    domain: ClassVar = "text"
    prefix: ClassVar = "bert."
    head_class: ClassVar = "BertForSequenceClassification"
    handled: ClassVar = words(
        """vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act hidden_dropout_prob
        attention_probs_dropout_prob max_position_embeddings type_vocab_size layer_norm_eps pad_token_id classifier_dropout
        initializer_range"""
    )
    fixed: ClassVar = {
        "position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False, "is_encoder_decoder": False,
        "chunk_size_feed_forward": 0, "pruned_heads": {},
    }  # fmt: skip
    renewable: ClassVar = ("head.*", "pooler.*")
    unused: ClassVar = ("cls.*", "classifier.*", "*embeddings.position_ids", "qa_outputs.*")
    assumed: ClassVar = {
        "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
        "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "max_position_embeddings": 512,
        "type_vocab_size": 2, "layer_norm_eps": 1e-12, "pad_token_id": 0, "classifier_dropout": None, "initializer_range": 0.02,
    }  # fmt: skip
    has_pooler: ClassVar = True
    counts_positions_from_pad: ClassVar = False

    @property
    def encoder(self) -> Encoder:
        c = self.raw
        problems = []
        if c["hidden_size"] % c["num_attention_heads"]:
            problems.append(
                f"config.json: hidden_size {c['hidden_size']} is not a multiple of num_attention_heads {c['num_attention_heads']}"
            )
        if c["hidden_act"] not in ACTIVATIONS:
            problems.append(f'config.json: activation "{c["hidden_act"]}" is not supported (known: {", ".join(ACTIVATIONS)})')
        if problems:
            raise ModelError(problems)
        return Encoder(
            vocabulary=c["vocab_size"],
            positions=c["max_position_embeddings"],
            token_types=c["type_vocab_size"],
            embedding_width=c.get("embedding_size", c["hidden_size"]),
            width=c["hidden_size"],
            layers=c["num_hidden_layers"],
            heads=c["num_attention_heads"],
            mlp=c["intermediate_size"],
            activation=c["hidden_act"],
            epsilon=c["layer_norm_eps"],
            deviation=c["initializer_range"],
            pad=c["pad_token_id"] if self.counts_positions_from_pad else None,
            pooler=self.has_pooler,
        )

    @property
    def architecture(self) -> str:
        return self.head_class

    @property
    def width(self) -> int:
        return self.encoder.width

    @property
    def layers(self) -> int:
        return self.encoder.layers

    @property
    def dropout(self) -> DropoutRates:
        c = self.raw
        head = c.get("classifier_dropout")
        return DropoutRates(c["hidden_dropout_prob"], c["attention_probs_dropout_prob"], c["hidden_dropout_prob"] if head is None else head)

    @property
    def max_tokens(self) -> int:
        c = self.encoder
        return c.positions if c.pad is None else c.positions - c.pad - 1

    @property
    def vocabulary(self) -> int:
        return self.encoder.vocabulary

    def backbone(self, *, options: StackOptions, dtype: Any, rngs: nnx.Rngs) -> nnx.Module:
        return EncoderModel(self.encoder, options=options, dtype=dtype, rngs=rngs)

    def head(self, outputs: int, *, rngs: nnx.Rngs) -> nnx.Module:
        return LinearHead(self.width, outputs, deviation=self.encoder.deviation, rngs=rngs)

    def rows(self) -> tuple[Weight, ...]:
        layer, attn = "encoder.layer.{i}", "encoder.layer.{i}.attention"
        return (
            *self.embedding_rows(),
            *linear("layers.{i}.attn.q", f"{attn}.self.query", "heads embed -> embed heads"),
            *linear("layers.{i}.attn.k", f"{attn}.self.key", "heads embed -> embed heads"),
            *linear("layers.{i}.attn.v", f"{attn}.self.value", "heads embed -> embed heads"),
            *linear("layers.{i}.attn.o", f"{attn}.output.dense", "embed heads -> heads embed"),
            *norm("layers.{i}.attn_norm", f"{attn}.output.LayerNorm"),
            *linear("layers.{i}.up", f"{layer}.intermediate.dense", "mlp embed -> embed mlp"),
            *linear("layers.{i}.down", f"{layer}.output.dense", "embed mlp -> mlp embed"),
            *norm("layers.{i}.mlp_norm", f"{layer}.output.LayerNorm"),
            *self.head_rows(),
        )

    def embedding_rows(self) -> tuple[Weight, ...]:
        return (
            Weight("embeddings.token.embedding", "embeddings.word_embeddings.weight", "vocab embed"),
            Weight("embeddings.position.embedding", "embeddings.position_embeddings.weight", "position embed"),
            Weight("embeddings.type.embedding", "embeddings.token_type_embeddings.weight", "type embed"),
            *norm("embeddings.norm", "embeddings.LayerNorm"),
            *linear("embeddings.project", "embeddings_project", "embed inputs -> inputs embed"),
        )

    def head_rows(self) -> tuple[Weight, ...]:
        return *linear("pooler", "pooler.dense", "out embed -> embed out"), *linear("head.out", "classifier", "label embed -> embed label")


class Roberta(Bert):
    """RoBERTa: positions counted over real tokens from pad + 1, no pooler, dense-tanh head."""

    model_type: ClassVar = "roberta"
    prefix: ClassVar = "roberta."
    head_class: ClassVar = "RobertaForSequenceClassification"
    assumed: ClassVar = {**Bert.assumed, "vocab_size": 50265, "pad_token_id": 1}
    renewable: ClassVar = ("head.*",)
    unused: ClassVar = ("lm_head.*", "classifier.*", "*pooler.*", "*embeddings.position_ids", "qa_outputs.*")
    has_pooler: ClassVar = False
    counts_positions_from_pad: ClassVar = True
    head_activation: ClassVar = "tanh"

    def head(self, outputs: int, *, rngs: nnx.Rngs) -> nnx.Module:
        return DenseHead(self.width, outputs, activation=self.head_activation, drop_input=True, deviation=self.encoder.deviation, rngs=rngs)

    def head_rows(self) -> tuple[Weight, ...]:
        return (
            *linear("head.dense", "classifier.dense", "out embed -> embed out"),
            *linear("head.out", "classifier.out_proj", "label embed -> embed label"),
        )


class XlmRoberta(Roberta):
    """XLM-R: RoBERTa with another vocabulary."""

    model_type: ClassVar = "xlm-roberta"
    head_class: ClassVar = "XLMRobertaForSequenceClassification"
    assumed: ClassVar = {**Roberta.assumed, "vocab_size": 30522}


class Electra(Roberta):
    """ELECTRA's discriminator: embeddings of their own width, dense-GELU head."""

    model_type: ClassVar = "electra"
    prefix: ClassVar = "electra."
    head_class: ClassVar = "ElectraForSequenceClassification"
    assumed: ClassVar = {
        **Bert.assumed, "embedding_size": 128, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024,
    }  # fmt: skip
    handled: ClassVar = Bert.handled | {"embedding_size"}
    ignored: ClassVar = frozenset(
        {"summary_type", "summary_use_proj", "summary_activation", "summary_last_dropout"}
    )  # multiple choice only
    unused: ClassVar = ("discriminator_predictions.*", "generator_*", "classifier.*", "*embeddings.position_ids", "qa_outputs.*")
    counts_positions_from_pad: ClassVar = False
    head_activation: ClassVar = "gelu"


class DistilBert(Bert):
    """DistilBERT: no token types, no dropout after attention, dense-ReLU head; its config has names of its own."""

    model_type: ClassVar = "distilbert"
    prefix: ClassVar = "distilbert."
    head_class: ClassVar = "DistilBertForSequenceClassification"
    handled: ClassVar = words(
        """vocab_size max_position_embeddings n_layers n_heads dim hidden_dim dropout attention_dropout activation initializer_range
        seq_classif_dropout pad_token_id"""
    )
    ignored: ClassVar = frozenset({"sinusoidal_pos_embds", "qa_dropout", "tie_weights_"})
    assumed: ClassVar = {
        "vocab_size": 30522, "max_position_embeddings": 512, "n_layers": 6, "n_heads": 12, "dim": 768,
        "hidden_dim": 3072, "dropout": 0.1, "attention_dropout": 0.1, "activation": "gelu", "initializer_range": 0.02,
        "seq_classif_dropout": 0.2, "pad_token_id": 0,
    }  # fmt: skip
    renewable: ClassVar = ("head.*",)
    unused: ClassVar = ("vocab_*", "pre_classifier.*", "classifier.*", "*embeddings.position_ids", "qa_outputs.*")

    @property
    def encoder(self) -> Encoder:
        c = self.raw
        if c["dim"] % c["n_heads"]:
            raise ModelError(f"config.json: dim {c['dim']} is not a multiple of n_heads {c['n_heads']}")
        if c["activation"] not in ACTIVATIONS:
            raise ModelError(f'config.json: activation "{c["activation"]}" is not supported (known: {", ".join(ACTIVATIONS)})')
        # LayerNorm's epsilon is a constant of the architecture; sinusoidal_pos_embds only set how the stored table was made.
        return Encoder(
            vocabulary=c["vocab_size"], positions=c["max_position_embeddings"], token_types=0, embedding_width=c["dim"], width=c["dim"],
            layers=c["n_layers"], heads=c["n_heads"], mlp=c["hidden_dim"], activation=c["activation"], epsilon=1e-12,
            deviation=c["initializer_range"], pad=None, pooler=False, drop_attention_output=False,
        )  # fmt: skip

    @property
    def dropout(self) -> DropoutRates:
        c = self.raw
        return DropoutRates(c["dropout"], c["attention_dropout"], c["seq_classif_dropout"])

    def head(self, outputs: int, *, rngs: nnx.Rngs) -> nnx.Module:
        return DenseHead(self.width, outputs, activation="relu", drop_input=False, deviation=self.encoder.deviation, rngs=rngs)

    def rows(self) -> tuple[Weight, ...]:
        layer, attn = "transformer.layer.{i}", "transformer.layer.{i}.attention"
        return (
            Weight("embeddings.token.embedding", "embeddings.word_embeddings.weight", "vocab embed"),
            Weight("embeddings.position.embedding", "embeddings.position_embeddings.weight", "position embed"),
            *norm("embeddings.norm", "embeddings.LayerNorm"),
            *linear("layers.{i}.attn.q", f"{attn}.q_lin", "heads embed -> embed heads"),
            *linear("layers.{i}.attn.k", f"{attn}.k_lin", "heads embed -> embed heads"),
            *linear("layers.{i}.attn.v", f"{attn}.v_lin", "heads embed -> embed heads"),
            *linear("layers.{i}.attn.o", f"{attn}.out_lin", "embed heads -> heads embed"),
            *norm("layers.{i}.attn_norm", f"{layer}.sa_layer_norm"),
            *linear("layers.{i}.up", f"{layer}.ffn.lin1", "mlp embed -> embed mlp"),
            *linear("layers.{i}.down", f"{layer}.ffn.lin2", "embed mlp -> mlp embed"),
            *norm("layers.{i}.mlp_norm", f"{layer}.output_layer_norm"),
            *linear("head.dense", "pre_classifier", "out embed -> embed out"),
            *linear("head.out", "classifier", "label embed -> embed label"),
        )
