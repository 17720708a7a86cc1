"""How language models' config.json are read: older and newer ways of saying the same, and what is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import parity_cases as cases
import pytest

from jaxtune.core.errors import ModelError
from jaxtune.models.decoder import DecoderShape, Kind
from jaxtune.models.family import family_class
from jaxtune.models.hub import ClassDefaults
from jaxtune.models.load import open_base


def shape(model_type: str, **config: Any) -> DecoderShape:
    cls = family_class(model_type)
    return cls(config, ClassDefaults(model_type)).shape  # type: ignore[attr-defined]


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@pytest.mark.parametrize(
    ("model_type", "older", "newer"),
    [
        ("llama", {"rope_theta": 5e5}, {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
        (
            "llama",
            {"rope_theta": 5e5, "rope_scaling": {"type": "llama3", **LLAMA3}},
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}},
        ),
        (
            "qwen2",
            {"rope_theta": 1e6, "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}},
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768, "rope_theta": 1e6}},
        ),
        (
            "gpt_neox",
            {"rotary_emb_base": 5000, "rotary_pct": 0.5},
            {"rope_parameters": {"rope_type": "default", "rope_theta": 5000, "partial_rotary_factor": 0.5}},
        ),
        (
            "gemma3_text",
            {
                "rope_theta": 1e6,
                "rope_local_base_freq": 5e3,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
                "sliding_window_pattern": 3,
            },
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 5e3},
                },
                "layer_types": [("full_attention" if n % 3 == 2 else "sliding_attention") for n in range(26)],
            },
        ),
        (
            "phi3",
            {"rope_theta": 10000.0, "partial_rotary_factor": 0.75},
            {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75}},
        ),
    ],
)
def test_older_and_newer_configs_are_one_shape(model_type: str, older: Mapping[str, Any], newer: Mapping[str, Any]) -> None:
    assert shape(model_type, **older) == shape(model_type, **newer) != shape(model_type)


def test_what_is_left_out_follows_from_the_rest() -> None:
    small = shape("llama", hidden_size=96, num_attention_heads=6, num_hidden_layers=2)
    assert (small.kv_heads, small.head_width) == (6, 16), "not the numbers of transformers' default, a 7B model"
    assert shape("qwen3", hidden_size=96, num_attention_heads=6, num_key_value_heads=2).head_width == 128
    assert shape("gpt2", n_embd=48, n_head=4).mlp == 192
    assert shape("gemma", hidden_act="gelu").activation == "gelu_pytorch_tanh"


def test_kinds_of_layers() -> None:
    local, everything = Kind(4096, 1), Kind(None, 0)
    assert shape("gemma3_text", num_hidden_layers=8).kinds == (*[local] * 5, everything, local, local)
    assert shape("gemma2", num_hidden_layers=3).kinds == (Kind(4096), Kind(), Kind(4096))
    assert shape("smollm3", num_hidden_layers=5).kinds == (Kind(), Kind(), Kind(), Kind(rope=None), Kind())
    assert shape("qwen2", num_hidden_layers=3, use_sliding_window=True, sliding_window=7, max_window_layers=2).kinds[1:] == (
        Kind(),
        Kind(7),
    )
    assert set(shape("mistral", sliding_window=None).kinds) == {Kind()}


@pytest.mark.parametrize(
    ("model_type", "config", "text"),
    [
        ("llama", {"rope_scaling": {"rope_type": "proportional"}}, 'rope_type "proportional" is not implemented'),
        ("llama", {"hidden_act": "xielu"}, 'activation "xielu" is not supported'),
        ("llama", {"num_attention_heads": 12, "hidden_size": 96, "num_key_value_heads": 5}, "12 attention heads are not a multiple of 5"),
        ("llama", {"hidden_size": 100}, "hidden_size 100 is not a multiple of num_attention_heads 32"),
        ("llama", {"quantization_config": {"quant_method": "bitsandbytes"}}, 'does not know the key "quantization_config"'),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True is not supported by gpt2"),
        ("qwen3_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step=2 is not supported by qwen3_moe; expected 1"),
        ("qwen2", {"layer_types": ["linear_attention"] * 32}, "layer_types linear_attention are not implemented"),
        ("gemma2", {"layer_types": ["full_attention"]}, "1 layer_types for 26 layers"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention=true is not supported by gemma3_text"),
        ("phi3", {"rope_scaling": {"type": "linear", "factor": 2.0}}, 'rope_type "linear" is not one of phi3'),
        ("phi3", {"lm_head_bias": True}, "lm_head_bias=True is not supported by phi3"),
    ],
)
def test_what_is_refused(model_type: str, config: dict[str, Any], text: str) -> None:
    with pytest.raises(ModelError) as caught:
        shape(model_type, **config)
    assert text in str(caught.value)


def test_dropout_that_cannot_be_said_by_one_rate_is_refused() -> None:
    with pytest.raises(ModelError, match=r"embd_pdrop 0.2 differs from resid_pdrop 0.1"):
        _ = family_class("gpt2")({"embd_pdrop": 0.2}, ClassDefaults("gpt2")).dropout


def test_an_encoder_has_no_language_head() -> None:
    with pytest.raises(ModelError, match="bert has no language-model head"):
        cases.load_folder(cases.REFERENCES / "bert", "language")
    assert not open_base(str(cases.REFERENCES / "bert")).family.generates
