"""Secrets are hidden, ordinary words of machine learning are not."""

from __future__ import annotations

import pytest

from jaxtune.core.redact import HIDDEN, redact, redact_command


@pytest.mark.parametrize(
    "text",
    [
        "hf_CANARYabcdefghijk",
        "sk-proj-CANARYabcdefghijkl",
        "ghp_CANARYabcdefghijklmnop",
        "github_pat_CANARY_abcdefghijkl",
        "AKIACANARY0123456789",
        "key AIzaCANARY_0123456789-0123456789-01234",
        "postgres://user:CANARY@host/db",
        "https://:CANARY@host",
        "password=CANARY123",
        'api_key: "CANARY123"',
        "WANDB_API_KEY=CANARY123",
        "Authorization: Bearer CANARY.abc",
        "eyJCANARYaaaa.eyJbbbbbbbb.cccccc",
    ],
)
def test_hidden(text):
    assert "CANARY" not in redact(text) and HIDDEN in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "max_tokens=256000 tokens_per_second=123456.7 batch_tokens: 4096",
        "tokenizer=sentence-transformers/all-MiniLM-L6-v2",
        "layers.0-5.attn.key.kernel=float32[6,384,384]",
        "https://huggingface.co/BAAI/bge-small-en@main",
        "/home/me/sk-learn/data",
    ],
)
def test_left_alone(text):
    assert redact(text) == text


def test_environment_values_are_hidden_wherever_they_appear(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "not-token-shaped")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "disabled")
    assert redact("x=not-token-shaped; disabled") == f"x={HIDDEN}; disabled"


def test_command():
    assert redact_command(["jaxtune", "--token", "abc", "--hf-token", "x", "-x", "seed=1"]) == [
        "jaxtune",
        "--token",
        HIDDEN,
        "--hf-token",
        HIDDEN,
        "-x",
        "seed=1",
    ]
