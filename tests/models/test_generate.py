"""Answers against a recomputation from the beginning for every token, a search through all answers, and the distribution they are drawn from."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import language_cases as language
import numpy as np
import parity_cases as cases
import pytest
import tiny
import tiny_decoder
from scipy import stats
from tiny_decoder import VOCABULARY, decoder, generator, next_log_probabilities, prompts

from jaxtune.core.errors import ConfigError
from jaxtune.models.decoding import draw
from jaxtune.models.generate import Generated, Generator, pieces
from jaxtune.models.generation import Generation
from jaxtune.parallel.mesh import Mesh

ENDS = (3, 7)


def said(found: Generated) -> list[list[int]]:
    return [tokens.tolist() for tokens in found.tokens]


def greedily(values: Any, prompt: Sequence[int], new: int, ends: Sequence[int]) -> tuple[list[int], int]:
    """By asking for the whole row anew at every token."""
    answer: list[int] = []
    while len(answer) < new:
        token = int(next_log_probabilities(values, [*prompt, *answer]).argmax())
        if token in ends:
            return answer, token
        answer.append(token)
    return answer, -1


# -- greedy -----------------------------------------------------------------------------------------------------------------


def test_greedy_equals_a_pass_from_the_beginning_for_every_token() -> None:
    made, params = generator(Generation(max_new_tokens=24), ends=ENDS, batch_size=4)
    asked = prompts(11)
    found = made(params, {}, asked)
    expected = [greedily(decoder()[1], prompt, 24, ENDS) for prompt in asked]
    assert said(found) == [answer for answer, _ in expected]
    assert found.ends.tolist() == [end for _, end in expected]
    assert {-1, *ENDS} >= set(found.ends.tolist()) and len(set(map(len, said(found)))) > 3, (
        "the example shows rows that end at different steps"
    )


def test_one_compilation_per_shape_whatever_the_prompts() -> None:
    made, params = generator(Generation(max_new_tokens=4, temperature=1.0, top_p=0.9), ends=ENDS, batch_size=4)
    made(params, {}, prompts(9, seed=1, longest=14))
    made(params, {}, prompts(12, seed=2, longest=16))
    assert made.answer._cache_size() == 1
    made(params, {}, prompts(4, seed=3, longest=30))
    assert made.answer._cache_size() <= 2


def test_the_loop_ends_with_the_last_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every token an end token: one pass over the prompts, none after it."""
    calls: list[int] = []
    decode = tiny_decoder.TinyDecoder.decode

    def counted(self: Any, tokens: Any, segment_ids: Any, positions: Any, cache: Any, first: Any) -> Any:
        jax.debug.callback(lambda first: calls.append(int(first)), first)
        return decode(self, tokens, segment_ids, positions, cache, first)

    monkeypatch.setattr(tiny_decoder.TinyDecoder, "decode", counted)
    made, params = generator(Generation(max_new_tokens=20), ends=tuple(range(VOCABULARY)), batch_size=4)
    found = made(params, {}, prompts(3, longest=9))
    jax.effects_barrier()
    assert said(found) == [[], [], []] and calls == [0]
    made, params = generator(Generation(max_new_tokens=5), batch_size=4)
    made(params, {}, prompts(3, longest=9))
    jax.effects_barrier()
    assert calls[1:] == [0, 16, 17, 18, 19], "the last token is not read"


@pytest.mark.parametrize(
    "settings",
    [
        Generation(max_new_tokens=12),
        Generation(max_new_tokens=12, temperature=1.3, top_k=6, seed=5),
        Generation(max_new_tokens=12, beams=3),
    ],
    ids=["greedy", "drawn", "beams"],
)
@pytest.mark.parametrize("mesh", [Mesh(), Mesh(data=2, fsdp=2, tensor=2)], ids=["data", "all"])
def test_eight_devices_equal_one(settings: Generation, mesh: Mesh) -> None:
    asked = prompts(11)
    alone, params = generator(settings, ends=ENDS, batch_size=8)
    many, spread = generator(settings, ends=ENDS, batch_size=8, placement=mesh.build())
    one, eight = alone(params, {}, asked), many(spread, {}, asked)
    assert said(one) == said(eight) and one.ends.tolist() == eight.ends.tolist()


@pytest.mark.parametrize("beams", [1, 3])
def test_a_text_that_outgrows_its_positions_is_read_anew(tmp_path: Path, beams: int) -> None:
    """LongRoPE turns all positions of a longer text otherwise: what the cache holds of its beginning is worth nothing."""
    original, new = 12, 10
    config = json.loads((cases.REFERENCES / "phi3_longrope/config.json").read_text())
    config["original_max_position_embeddings"] = config["rope_parameters"]["original_max_position_embeddings"] = original
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copy(cases.REFERENCES / "phi3_longrope/model.safetensors", tmp_path)
    it = cases.load_folder(tmp_path, "language")
    asked = prompts(5, longest=original + 3, seed=2)
    made = Generator(it.blueprint, Generation(max_new_tokens=new, beams=beams), (), it.placement, jnp.float32, 64, 4)
    found = said(made(it.values, {}, asked))

    @jax.jit
    def after(values: Any, tokens: jax.Array, length: jax.Array) -> jax.Array:
        """log-probabilities [V] of the token behind the first `length`, without a cache."""
        model: Any = it.blueprint.build(values)
        features = model({"tokens": tokens[None], "segment_ids": (jnp.arange(32) < length).astype(jnp.int32)[None]})
        return jax.nn.log_softmax(model.head.logits(model, features.pooled)[0])

    def probabilities(row: list[int]) -> np.ndarray:
        return np.asarray(after(it.values, np.pad(np.array(row, np.int32), (0, 32 - len(row))), np.int32(len(row))))

    assert any(len(prompt) <= original < len(prompt) + new for prompt in asked)
    for prompt, answer in zip(asked, found, strict=True):
        open_rows: list[tuple[float, list[int]]] = [(0.0, [])]
        for _ in range(new):
            steps = [(score + p, [*row, token]) for score, row in open_rows for token, p in enumerate(probabilities([*prompt, *row]))]
            open_rows = sorted(steps, reverse=True)[:beams]
        assert answer == open_rows[0][1]
        assert beams > 1 or list(made.stream(it.values, {}, prompt)) == answer


@pytest.mark.parametrize("name", language.NAMES)
def test_greedy_equals_transformers_token_for_token(name: str) -> None:
    """64 tokens after prompts of three lengths, and the same ended by tokens that come on the way."""
    it, recorded = language.loaded(name), cases.reference(name)["generated"]
    batch = language.batch_of(name, "prompt.")
    asked = [tokens[real > 0].tolist() for tokens, real in zip(batch["tokens"], batch["segment_ids"], strict=True)]
    assert len(np.unique(recorded)) > 8, "a continuation that repeats itself shows little"
    both = ((), (int(recorded[0, 20]), int(recorded[1, 40])))
    for ends in both if name in ("llama", "gemma3") else both[:1]:
        made = Generator(it.blueprint, Generation(max_new_tokens=recorded.shape[1]), ends, tiny.one_device(), jnp.float32)
        found = made(it.values, {}, asked)
        for tokens, expected, end in zip(found.tokens, recorded, found.ends, strict=True):
            length = next((place for place, token in enumerate(expected) if token in ends), len(expected))
            np.testing.assert_array_equal(tokens, expected[:length])
            assert end == (expected[length] if length < len(expected) else -1)


# -- drawing ----------------------------------------------------------------------------------------------------------------


def test_draws_depend_on_seed_and_prompt_and_not_on_the_batch() -> None:
    asked = prompts(6)
    answers = {}
    for size in (1, 4, 8):
        made, params = generator(Generation(max_new_tokens=16, temperature=1.0, seed=1), batch_size=size)
        answers[size] = said(made(params, {}, asked))
    assert answers[1] == answers[4] == answers[8]
    other, params = generator(Generation(max_new_tokens=16, temperature=1.0, seed=2), batch_size=8)
    assert said(other(params, {}, asked)) != answers[8]
    twice = made(params, {}, [asked[0], asked[0]]).tokens
    assert twice[0].tolist() != twice[1].tolist(), "equal prompts are drawn for independently"


LOGITS = np.array([2.0, 1.5, 1.4, 0.3, -0.5, -1.0, -4.0], np.float32)


def closed_form(temperature: float, top_k: int | None, top_p: float | None) -> np.ndarray:
    """f64[V]: the distribution by its definition, a token at a time."""
    p = np.exp(LOGITS.astype(np.float64) / temperature)
    order = sorted(range(len(p)), key=lambda token: -p[token])[: top_k or len(p)]
    p /= p[order].sum()
    kept, total = [], 0.0
    for token in order:
        kept.append(token)
        total += p[token]
        if top_p is not None and total >= top_p:
            break
    q = np.zeros(len(p))
    q[kept] = p[kept] / p[kept].sum()
    return q


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [
        (1.0, None, None),
        (0.5, None, None),
        (2.0, 3, None),
        (1.0, None, 0.8),
        (1.0, None, 0.05),
        (1.5, 5, 0.7),
        (1.0, 99, 1.0),
        (1.0, 1, None),
    ],
)
def test_tokens_are_drawn_from_the_closed_form_distribution(temperature: float, top_k: int | None, top_p: float | None) -> None:
    draws = 20_000
    logits = jnp.broadcast_to(jnp.asarray(LOGITS)[None], (draws, len(LOGITS)))
    keys = jax.random.split(jax.random.key(0), draws)
    tokens = np.asarray(
        jax.jit(draw, static_argnums=3)(logits, keys, jnp.float32(temperature), top_k, None if top_p is None else jnp.float32(top_p))
    )
    expected = closed_form(temperature, top_k, top_p)
    counts = np.bincount(tokens, minlength=len(LOGITS))
    assert set(np.flatnonzero(counts)) <= set(np.flatnonzero(expected)), "nothing outside the support"
    inside = expected > 0
    if inside.sum() > 1:
        assert stats.chisquare(counts[inside], draws * expected[inside]).pvalue > 1e-4
    else:
        assert counts[inside] == draws


def test_drawn_answers_follow_the_model() -> None:
    """The first two tokens of many answers to one prompt, jointly."""
    prompt, draws = [1, 2, 3], 3000
    made, params = generator(Generation(max_new_tokens=2, temperature=1.0), batch_size=512)
    counts = np.zeros((VOCABULARY, VOCABULARY))
    for first, second in said(made(params, {}, [prompt] * draws)):
        counts[first, second] += 1
    values = decoder()[1]
    p = np.exp(next_log_probabilities(values, prompt))
    joint = np.stack([p[token] * np.exp(next_log_probabilities(values, [*prompt, token])) for token in range(VOCABULARY)])
    often = joint * draws >= 5
    observed, expected = [*counts[often], counts[~often].sum()], [*(joint[often] * draws), joint[~often].sum() * draws]
    assert stats.chisquare(observed, expected).pvalue > 1e-4


# -- beams ------------------------------------------------------------------------------------------------------------------


def whole_answers(values: Any, prompt: Sequence[int], new: int, ends: Sequence[int], penalty: float) -> dict[tuple[int, ...], float]:
    """The score of every answer there is: those that end, and those of `new` tokens."""
    found, open_ones = {}, {(): 0.0}
    for length in range(1, new + 1):
        longer = {}
        for beginning, total in open_ones.items():
            each = next_log_probabilities(values, [*prompt, *beginning])
            for token in range(VOCABULARY):
                answer, score = (*beginning, token), total + each[token]
                if token in ends or length == new:
                    found[answer] = score / length**penalty
                else:
                    longer[answer] = score
        open_ones = longer
    return found


@pytest.mark.parametrize("penalty", [1.0, 0.0, 2.5, -1.0])
def test_wide_beam_search_finds_the_best_of_all_answers(penalty: float) -> None:
    new, asked = 3, prompts(4, seed=2, longest=6)
    made, params = generator(Generation(max_new_tokens=new, beams=VOCABULARY**2, length_penalty=penalty), ends=ENDS)
    found = made(params, {}, asked)
    for prompt, tokens, end in zip(asked, found.tokens, found.ends, strict=True):
        answers = whole_answers(decoder()[1], prompt, new, ENDS, penalty)
        best = max(answers, key=answers.__getitem__)
        assert [*tokens.tolist(), *([end] if end >= 0 else [])] == list(best)


def search(values: Any, prompt: Sequence[int], beams: int, new: int, ends: Sequence[int], penalty: float) -> list[int]:
    """Beam search as a person would do it, to the last token."""
    best: tuple[float, list[int]] = (-np.inf, [])
    beginnings: list[tuple[float, list[int]]] = [(0.0, [])]
    for length in range(1, new + 1):
        each = [
            (total + step, [*tokens, token])
            for total, tokens in beginnings
            for token, step in enumerate(next_log_probabilities(values, [*prompt, *tokens]))
        ]
        each.sort(key=lambda candidate: -candidate[0])
        ended = [(total / length**penalty, tokens) for total, tokens in each[:beams] if tokens[-1] in ends]
        best = max([best, *ended], key=lambda candidate: candidate[0])
        beginnings = [candidate for candidate in each if candidate[1][-1] not in ends][:beams]
    return max([best, *((total / new**penalty, tokens) for total, tokens in beginnings)], key=lambda candidate: candidate[0])[1]


@pytest.mark.parametrize(("beams", "penalty"), [(2, 1.0), (3, 0.0), (4, 2.0), (5, -0.5)])
@pytest.mark.parametrize("ends", [ENDS, (0,), ()], ids=["two ends", "one end", "no end"])
def test_narrow_beam_search_equals_a_plain_one(beams: int, penalty: float, ends: tuple[int, ...]) -> None:
    asked = prompts(7, seed=4, longest=9)
    made, params = generator(Generation(max_new_tokens=9, beams=beams, length_penalty=penalty), ends=ends, batch_size=4)
    found = made(params, {}, asked)
    for prompt, tokens, end in zip(asked, found.tokens, found.ends, strict=True):
        assert [*tokens.tolist(), *([end] if end >= 0 else [])] == search(decoder()[1], prompt, beams, 9, ends, penalty)


def test_more_beams_find_other_answers() -> None:
    asked, answers = prompts(12, seed=5), []
    for beams in (1, 4):
        made, params = generator(Generation(max_new_tokens=8, beams=beams))
        answers.append(said(made(params, {}, asked)))
    assert answers[0] != answers[1]


# -- streaming --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [Generation(max_new_tokens=10), Generation(max_new_tokens=10, temperature=1.0, seed=3)], ids=["greedy", "drawn"]
)
def test_streaming_says_the_same(settings: Generation) -> None:
    for prompt in prompts(4, seed=6):
        made, params = generator(settings, ends=ENDS)
        whole = made(params, {}, [prompt])
        assert list(made.stream(params, {}, prompt)) == whole.tokens[0].tolist()
        assert next(iter(made.stream(params, {}, prompt)), None) == next(iter(whole.tokens[0].tolist()), None), "it may be left early"


def test_text_comes_in_whole_characters() -> None:
    raw = "naïve 😀 end".encode()

    def decode(tokens: Sequence[int]) -> str:
        return bytes(tokens).decode(errors="replace")

    found = list(pieces(iter(raw), decode))
    assert "".join(found) == "naïve 😀 end" and "😀" in found and "�" not in "".join(found)
    assert "".join(pieces(iter(raw[:8]), decode)) == decode(list(raw[:8])), "what never becomes a character is shown in the end"
    assert list(pieces(iter(()), decode)) == []


# -- what is refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"beams": 4, "temperature": 0.7}, r"temperature: 0\.7 draws tokens, which a search with 4 beams never does"),
        ({"top_k": 5}, "top_k: has no effect at temperature 0"),
        ({"top_p": 0.9}, "top_p: has no effect at temperature 0"),
        ({"seed": 1}, "seed: has no effect at temperature 0"),
        ({"length_penalty": 2.0}, "length_penalty: has no effect without beam search"),
    ],
)
def test_settings_without_effect_are_refused_by_name(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Generation(**settings)


def test_all_problems_of_the_settings_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Generation(top_k=5, top_p=0.5, length_penalty=0.5)
    assert len(caught.value.problems) == 3


def test_prompts_that_cannot_be_answered_are_named() -> None:
    made, params = generator(Generation(max_new_tokens=10))
    with pytest.raises(ConfigError) as caught:
        made(params, {}, [[1], [], [2] * 55])
    empty, long = caught.value.problems
    assert empty == "prompt 1 is empty; it needs at least one token"
    assert long == "prompt 2: 55 tokens and max_new_tokens 10 are more than the 64 positions of the model; shorten one of them"
    made(params, {}, [[2] * 54])
    with pytest.raises(ConfigError, match="cannot be streamed; set beams to 1"):
        next(generator(Generation(beams=2))[0].stream(params, {}, [1]))


def test_no_prompts_no_answers() -> None:
    made, params = generator(Generation())
    found = made(params, {}, [])
    assert found.tokens == () and len(found.ends) == 0


def test_the_search_has_something_to_find() -> None:
    """The made decoder is no walk through one token: answers differ and depend on what stands before the last token."""
    values = decoder()[1]
    after = [next_log_probabilities(values, [*beginning, 5]).argmax() for beginning in itertools.product(range(4), repeat=2)]
    assert len(set(after)) > 1
