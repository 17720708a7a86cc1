"""The conversion of SmolLM2 from GGUF, on made arrays; scripts/get_smollm2.sh compares every tensor of the real one with its file."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from tokenizers import Tokenizer, pre_tokenizers

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "make_smollm2.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_smollm2", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rotate(x: np.ndarray, position: int, pairs: list[tuple[int, int]]) -> np.ndarray:
    """Rotary embedding of one head's vector, number i of `pairs` turning by position * 100 ** (-i / pairs)."""
    out = x.copy()
    for i, (a, b) in enumerate(pairs):
        angle = position * 100.0 ** (-i / len(pairs))
        out[a] = x[a] * np.cos(angle) - x[b] * np.sin(angle)
        out[b] = x[a] * np.sin(angle) + x[b] * np.cos(angle)
    return out


@pytest.mark.parametrize(("heads", "width"), [(1, 8), (3, 4), (2, 2)])
def test_unpermuted_rows_rotated_by_halves_score_as_permuted_rows_rotated_by_neighbours(script, heads, width):
    """What the order is for: scores between positions, llama.cpp's way and Hugging Face's."""
    random = np.random.default_rng(0)
    stored_q, stored_k = random.normal(size=(2, heads * width, 5))
    neighbours = [(2 * i, 2 * i + 1) for i in range(width // 2)]
    halves = [(i, i + width // 2) for i in range(width // 2)]

    def score(q: np.ndarray, k: np.ndarray, pairs: list[tuple[int, int]]) -> list[float]:
        x, y = np.arange(5) - 2.0, np.cos(np.arange(5))
        by_head = zip((q @ x).reshape(heads, width), (k @ y).reshape(heads, width), strict=True)
        return [float(rotate(a, 7, pairs) @ rotate(b, 3, pairs)) for a, b in by_head]

    expected = score(stored_q, stored_k, neighbours)
    assert score(script.unpermute(stored_q, heads), script.unpermute(stored_k, heads), halves) == pytest.approx(expected)
    if width > 2:
        assert score(stored_q, stored_k, halves) != pytest.approx(expected)
    np.testing.assert_array_equal(script.permute(script.unpermute(stored_q, heads), heads), stored_q)
    np.testing.assert_array_equal(script.unpermute(np.arange(8.0), 2), [0, 2, 1, 3, 4, 6, 5, 7])  # a bias has rows alone


def test_every_tensor_gets_its_name_and_only_query_and_key_are_put_in_order(script):
    stored = {name: np.full((24, 2), number, np.float32) + np.arange(24)[:, None] / 32 for number, name in enumerate(script.names(2))}
    config = {"num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 3}
    made = script.convert(stored.__getitem__, config)
    assert len(made) == 2 + 2 * 9 and "model.layers.1.mlp.down_proj.weight" in made
    moved = {hf for gguf, hf in script.names(2).items() if not np.array_equal(made[hf], stored[gguf])}
    assert moved == {f"model.layers.{i}.self_attn.{p}_proj.weight" for i in range(2) for p in "qk"}
    np.testing.assert_array_equal(made["model.layers.0.self_attn.k_proj.weight"], script.unpermute(stored["blk.0.attn_k.weight"], 3))


def fields(tokens: list[str]) -> dict:
    return {
        "general.architecture": "llama", "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": [3, 3] + [1] * (len(tokens) - 2),
        "tokenizer.ggml.merges": ["Ġ a", "a b"], "tokenizer.ggml.add_space_prefix": False, "tokenizer.chat_template": "{{ messages }}",
        "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 1, "llama.embedding_length": 8, "llama.feed_forward_length": 16, "llama.block_count": 2,
        "llama.attention.head_count": 2, "llama.attention.head_count_kv": 1, "llama.context_length": 32, "llama.rope.freq_base": 1e5,
        "llama.attention.layer_norm_rms_epsilon": 9.999999747378752e-06,
    }  # fmt: skip


def test_the_tokenizer_splits_digits_and_keeps_special_tokens_whole(script, tmp_path):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    files = script.files_of(fields(["<|start|>", "<|end|>", *alphabet, "Ġa", "ab"]))
    backend = Tokenizer.from_str(json.dumps(files["tokenizer.json"]))
    assert backend.encode("ab a 123<|end|> é").tokens == ["ab", "Ġa", "Ġ", "1", "2", "3", "<|end|>", "Ġ", "Ã", "©"]
    assert backend.decode(backend.encode("ab 12 é").ids) == "ab 12 é"
    assert files["config.json"]["rms_norm_eps"] == 1e-5 and files["config.json"]["vocab_size"] == 260
    assert files["tokenizer_config.json"]["eos_token"] == "<|end|>" and files["generation_config.json"]["eos_token_id"] == 1
    with pytest.raises(SystemExit, match="architecture llama, found gemma"):
        script.config_of({"general.architecture": "gemma"})
