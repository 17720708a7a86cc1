"""Keras Hub's BERT classifier on JAX, with MiniLM's weights put in, trained by `fit` on rows padded to the length limit, as its preprocessor makes them.

Its BERT knows the tanh form of GELU only, where the checkpoint has the exact one: cheaper, and not quite the same model.
"""

from __future__ import annotations

import json
import os
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import keras
import keras_hub
import numpy as np
from encoder.job import Job, Marks, Split, read_splits, versions


@keras.saving.register_keras_serializable()
class Linear(keras.optimizers.schedules.LearningRateSchedule):
    """Up over the warm-up, then a straight line to zero."""

    def __init__(self, peak: float, warm_up: int, total: int):
        self.peak, self.warm_up, self.total = peak, warm_up, total

    def __call__(self, step: Any) -> Any:
        now = keras.ops.cast(step, "float32")
        up, down = now / max(1, self.warm_up), (self.total - now) / max(1, self.total - self.warm_up)
        return self.peak * keras.ops.maximum(0.0, keras.ops.minimum(up, down))


class Watch(keras.callbacks.Callback):
    def __init__(self, marks: Marks):
        super().__init__()
        self.marks = marks

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        float(logs["loss"])  # the device has finished
        self.marks.step(not self.marks.ends)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.marks.epoch()


def classifier(weights: dict[str, np.ndarray], shape: dict[str, Any], classes: int) -> keras.Model:
    """The checkpoint's model; `weights` by the names of its file."""
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=shape["vocab_size"],
        num_layers=shape["num_hidden_layers"],
        num_heads=shape["num_attention_heads"],
        hidden_dim=shape["hidden_size"],
        intermediate_dim=shape["intermediate_size"],
        dropout=shape["hidden_dropout_prob"],
        max_sequence_length=shape["max_position_embeddings"],
        num_segments=shape["type_vocab_size"],
    )
    for variable in backbone.weights:
        source, transpose = source_of(variable.path)
        value = weights[source].T if transpose else weights[source]
        variable.assign(value.reshape(variable.shape))
    model = keras_hub.models.BertTextClassifier(backbone=backbone, num_classes=classes, dropout=shape["hidden_dropout_prob"])
    return keras.Model(model.inputs, model.outputs)  # its own `fit` would first tokenize, which is done


PLACES = {
    "self_attention_layer/query": "attention.self.query",
    "self_attention_layer/key": "attention.self.key",
    "self_attention_layer/value": "attention.self.value",
    "self_attention_layer/attention_output": "attention.output.dense",
    "self_attention_layer_norm": "attention.output.LayerNorm",
    "feedforward_intermediate_dense": "intermediate.dense",
    "feedforward_output_dense": "output.dense",
    "feedforward_layer_norm": "output.LayerNorm",
}
TOP = {
    "token_embedding": "embeddings.word_embeddings",
    "position_embedding": "embeddings.position_embeddings",
    "segment_embedding": "embeddings.token_type_embeddings",
    "embeddings_layer_norm": "embeddings.LayerNorm",
    "pooled_dense": "pooler.dense",
}


def source_of(path: str) -> tuple[str, bool]:
    """A Keras variable's name in the checkpoint, and whether it lies transposed there."""
    place, _, kind = path.rpartition("/")
    ending = "bias" if kind in ("bias", "beta") else "weight"
    if not place.startswith("transformer_layer_"):
        return f"{TOP[place]}.{ending}", kind == "kernel"
    layer, _, inner = place.removeprefix("transformer_layer_").partition("/")
    return f"encoder.layer.{layer}.{PLACES[inner]}.{ending}", kind == "kernel"


def inputs(split: Split, width: int) -> dict[str, np.ndarray]:
    tokens, mask = split.padded(width)
    return {"token_ids": tokens, "segment_ids": np.zeros_like(tokens), "padding_mask": mask}


def main() -> None:
    job = Job.read()
    keras.utils.set_random_seed(job.seed)
    if job.precision == "bfloat16":
        keras.config.set_dtype_policy("mixed_bfloat16")
    splits, marks = read_splits(job.data), Marks()
    train = splits["train"] if job.mode == "epochs" else splits["train"].full(job.max_tokens)
    if job.mode != "epochs":
        rows = np.arange(job.steps * job.batch) % len(train)
        train = Split([train.tokens[i] for i in rows], train.labels[rows])
    with np.load(job.model) as file:
        weights = {name: file[name] for name in file.files if name != "config"}
        shape = file["config"].item()
    model = classifier(weights, json.loads(shape), int(splits["train"].labels.max()) + 1)
    epochs = job.epochs if job.mode == "epochs" else 1
    total = epochs * -(-len(train) // job.batch)
    optimizer = keras.optimizers.AdamW(
        Linear(job.rate, job.warm_up, total), weight_decay=job.weight_decay, epsilon=1e-8, global_clipnorm=1.0
    )
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    model.compile(optimizer=optimizer, loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x = inputs(train, job.max_tokens)
    marks.start()
    model.fit(x, train.labels, batch_size=job.batch, epochs=epochs, shuffle=True, verbose=0, callbacks=[Watch(marks)])
    outcome: dict[str, Any] = {}
    if job.mode == "epochs":
        outcome["accuracy"] = {
            name: float(np.mean(np.argmax(model.predict(inputs(s, job.max_tokens), batch_size=job.batch, verbose=0), -1) == s.labels))
            for name, s in splits.items()
            if name != "train"
        }
    job.finish({**outcome, **marks.outcome(), "versions": versions("keras", "keras-hub", "jax", "jaxlib", "numpy")})


if __name__ == "__main__":
    main()
