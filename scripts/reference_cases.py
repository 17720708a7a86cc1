"""The cases of `record_references.py`: one for each thing that a family can get wrong, as small as still shows it.

Layer, head and class counts differ between the cases on purpose, so that a number written into the code instead of
read from the config is found out.
"""

from dataclasses import dataclass, field
from typing import Any

NAMED = {"id2label": {0: "calm", 1: "glad", 2: "sad"}, "label2id": {"calm": 0, "glad": 1, "sad": 2}}
THREE = {"num_labels": 3}
WIDTHS = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 40,
    "initializer_range": 0.2,
}
BERT = {**WIDTHS, "vocab_size": 120, "max_position_embeddings": 24, "type_vocab_size": 2}
# RoBERTa counts positions from pad_token_id + 1, so 16 tokens need 18 rows (20 where the padding is token 3).
ROBERTA = {
    **WIDTHS,
    "vocab_size": 60,
    "max_position_embeddings": 18,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    **THREE,
}
DISTILBERT = {
    "dim": 32,
    "n_heads": 4,
    "n_layers": 2,
    "hidden_dim": 40,
    "vocab_size": 120,
    "max_position_embeddings": 24,
}
ELECTRA = {**BERT, **THREE, "vocab_size": 60}
VIT = {**WIDTHS, "image_size": 16, "patch_size": 4}
RESNET = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 2], "layer_type": "bottleneck", **THREE}
VIT_PROCESSOR = ("ViTImageProcessorPil", {"size": {"height": 16, "width": 16}})
RESNET_PROCESSOR = (
    "ConvNextImageProcessorPil",
    {"size": {"shortest_edge": 32}, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
)


@dataclass(frozen=True)
class Case:
    """One checkpoint and one batch."""

    name: str
    architecture: str  # a class of transformers
    config: dict[str, Any]
    shows: str
    build: dict[str, Any] = field(default_factory=dict)  # more arguments of the class
    forward: dict[str, Any] = field(default_factory=dict)  # more arguments of the forward pass
    tokens: int = 16
    left_padded: bool = False
    pixels: tuple[int, int] | None = None  # height and width, where not the config's image_size (ResNet: 32 x 32)
    processor: tuple[str, dict[str, Any]] | None = None  # image processor class and its settings
    keeps_position_table: bool = False  # leave the position embeddings as transformers initializes them
    takes_labels: bool = True  # the model computes a loss itself
    also_in_training: bool = False  # a second pass with batch statistics


def bert(name: str, shows: str, architecture: str = "BertForSequenceClassification", **changes: Any) -> Case:
    options = {key: changes.pop(key) for key in ("build", "tokens", "left_padded") if key in changes}
    return Case(name, architecture, {**BERT, **changes}, shows, **options)


def roberta(name: str, shows: str, architecture: str = "RobertaForSequenceClassification", **changes: Any) -> Case:
    options = {key: changes.pop(key) for key in ("left_padded",) if key in changes}
    return Case(name, architecture, {**ROBERTA, **changes}, shows, **options)


def distilbert(name: str, shows: str, **changes: Any) -> Case:
    keeps = changes.get("sinusoidal_pos_embds", False)
    config = {**DISTILBERT, "initializer_range": 0.2, **THREE, **changes}
    return Case(name, "DistilBertForSequenceClassification", config, shows, keeps_position_table=keeps)


def vit(name: str, shows: str, architecture: str = "ViTForImageClassification", **changes: Any) -> Case:
    options = {key: changes.pop(key) for key in ("forward", "pixels", "processor", "takes_labels") if key in changes}
    labels = {} if architecture == "ViTModel" or "id2label" in changes else THREE
    return Case(name, architecture, {**VIT, **labels, **changes}, shows, **options)


def resnet(name: str, shows: str, **changes: Any) -> Case:
    options = {key: changes.pop(key) for key in ("pixels", "processor") if key in changes}
    config = {**RESNET, **changes}
    return Case(name, "ResNetForImageClassification", config, shows, also_in_training=True, **options)


CASES = (
    bert("bert", "the plain model: gelu, 3 layers, named labels", num_hidden_layers=3, **NAMED),
    bert(
        "bert_one_head",
        "one head, relu, one token type, eps 1e-5, as long as the position table, two labels (not in config.json)",
        num_attention_heads=1,
        hidden_act="relu",
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        tokens=24,
    ),
    bert(
        "bert_eight_heads",
        "heads of 4, gelu_new, three token types, eps 1e-3",
        num_attention_heads=8,
        hidden_act="gelu_new",
        type_vocab_size=3,
        layer_norm_eps=1e-3,
        **THREE,
    ),
    bert("bert_bare", "BertModel with pooler, names without prefix", "BertModel"),
    bert("bert_bare_no_pooler", "BertModel without pooler", "BertModel", build={"add_pooling_layer": False}),
    bert("bert_pretraining", "BertForPreTraining: tensors under cls. that no classifier wants", "BertForPreTraining"),
    bert("bert_multi_label", "binary cross entropy", problem_type="multi_label_classification", **THREE),
    bert("bert_regression", "one output, mean squared error", problem_type="regression", num_labels=1),
    bert(
        "bert_left_padded",
        "padded on the left: positions are not moved, pooling reads padding",
        left_padded=True,
        **THREE,
    ),
    roberta("roberta", "the plain model: positions from the padding, one token type"),
    roberta(
        "roberta_pad_three",
        "padding is token 3, two token types",
        pad_token_id=3,
        type_vocab_size=2,
        max_position_embeddings=20,
        num_hidden_layers=3,
    ),
    roberta(
        "roberta_left_padded",
        "padded on the left: positions start at the text, pooling reads padding",
        left_padded=True,
    ),
    roberta("xlm_roberta", "the plain model", "XLMRobertaForSequenceClassification", num_hidden_layers=3),
    distilbert("distilbert", "the plain model"),
    distilbert("distilbert_sinusoidal", "positions as transformers computes them", sinusoidal_pos_embds=True, n_layers=1),
    distilbert(
        "distilbert_relu",
        "relu, 3 layers, two labels (not in config.json)",
        activation="relu",
        n_layers=3,
        num_labels=2,
        vocab_size=60,
    ),
    Case(
        "electra",
        "ElectraForSequenceClassification",
        {**ELECTRA, "embedding_size": 16},
        "embeddings narrower than the model, so embeddings_project",
    ),
    Case(
        "electra_equal",
        "ElectraForSequenceClassification",
        {**ELECTRA, "embedding_size": 32, "hidden_act": "relu", "summary_activation": "tanh", "num_hidden_layers": 3},
        "embeddings as wide as the model; the head is gelu whatever hidden_act and summary_activation say",
    ),
    vit(
        "vit",
        "the plain model, named labels, with image processor",
        num_hidden_layers=3,
        processor=VIT_PROCESSOR,
        **NAMED,
    ),
    vit("vit_no_qkv_bias", "no bias on query, key, value", qkv_bias=False),
    vit("vit_one_channel", "grey images, relu, eps 1e-6", num_channels=1, hidden_act="relu", layer_norm_eps=1e-6),
    vit("vit_wide", "images wider than high: patches row by row", image_size=[16, 24]),
    vit(
        "vit_interpolated",
        "a larger image than the checkpoint's, positions interpolated",
        pixels=(24, 32),
        forward={"interpolate_pos_encoding": True},
    ),
    vit("vit_bare", "ViTModel with pooler, names without prefix", "ViTModel"),
    vit("vit_bare_pooler", "another pooler: 20 wide, relu", "ViTModel", pooler_output_size=20, pooler_act="relu"),
    vit("deit", "a distillation token, head on the class token", "DeiTForImageClassification"),
    vit(
        "deit_teacher",
        "the mean of two heads",
        "DeiTForImageClassificationWithTeacher",
        takes_labels=False,
    ),
    resnet("resnet", "bottleneck, with image processor", processor=RESNET_PROCESSOR, **NAMED),
    resnet(
        "resnet_basic",
        "basic, no shortcut convolution in the first stage",
        layer_type="basic",
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[2, 1],
    ),
    resnet(
        "resnet_one_channel",
        "grey images, wider than high, three stages",
        num_channels=1,
        hidden_sizes=[16, 24, 32],
        depths=[2, 1, 1],
        pixels=(48, 64),
    ),
    resnet(
        "resnet_downsample_first",
        "stride 2 in the first stage, odd heights on the way (42, 21, 11, 6, 3)",
        downsample_in_first_stage=True,
        pixels=(42, 48),
    ),
    resnet("resnet_downsample_bottleneck", "stride in the first convolution of a block", downsample_in_bottleneck=True),
    resnet("resnet_silu", "hidden_act silu: inside the blocks relu remains", hidden_act="silu"),
)

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_WORDS = """
the an and or not is was are of in on to with for it this that very good bad great best never film story actor music
book price shop people rain sun market team game win lose new old play they more
"""
VOCABULARY = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *".,!?'-",
    *"0123456789",
    *_LETTERS,
    *(f"##{letter}" for letter in _LETTERS),
    *("##ed", "##ing", "##ly", "##er"),
    *_WORDS.split(),
]
TEXTS = (
    "The film was very good.",
    "A bad story, and the actor is not great!",
    "It rained in 2024?",
    "Naïve  play-ing\tof the NEW music",
    "価格 is 15",
    "",
)
