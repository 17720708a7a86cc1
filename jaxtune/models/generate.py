"""Answers to prompts, in batches or token by token: one compiled program per shape, in which the whole loop runs.

Prompts are sorted by length and padded on the left to a few widths, so a few programs serve all of them; a batch is done when all of
its rows are. What an answer is does not depend on the batch, the padding or the number of devices.

Letters: B batch, P slots of the prompt, N new tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxtune.core.errors import ConfigError
from jaxtune.models.beam import beam_search
from jaxtune.models.blueprint import Blueprint, Flat
from jaxtune.models.decoding import Context, draw, greedy, is_end, read_prompts, read_token, row_keys
from jaxtune.models.generation import Generation
from jaxtune.parallel.placement import Placement

NARROWEST = 16
BIG = (".kernel", "token.embedding", "head.embedding")  # what every use rounds to the computation's precision anyway
REPLACEMENT = "\ufffd"  # what stands for bytes that are no whole character yet
Knobs = Mapping[str, jax.Array]  # settings that may change without another compilation


@dataclass(frozen=True)
class Generated:
    """Answers in the order of the prompts."""

    tokens: tuple[np.ndarray, ...]  # i32, without the end token
    ends: np.ndarray  # i32[n], the end token of each; -1 where max_new_tokens ended it


@dataclass(frozen=True, eq=False)
class Generator:
    """A decoder with its language-model head that answers prompts.

    Attributes:
        ends: tokens that end an answer.
        dtype: precision of the computation and of the cache.
        max_tokens: how many positions the model has; None where nothing bounds them.
        batch_size: rows that are answered at once.
    """

    blueprint: Blueprint
    settings: Generation
    ends: tuple[int, ...]
    placement: Placement
    dtype: Any
    max_tokens: int | None = None
    batch_size: int = 8

    def __call__(self, params: Flat, variables: Flat, prompts: Sequence[Sequence[int] | np.ndarray]) -> Generated:
        """Answers all prompts, whole.

        Raises:
            ConfigError: prompts without a token, or too long for the model (all are named).
        """
        self.check([len(prompt) for prompt in prompts])
        params, knobs = self.ready(params), self.knobs()
        found: list[np.ndarray] = [np.zeros(0, np.int32)] * len(prompts)
        for rows in self.batches([len(prompt) for prompt in prompts]):
            batch = jax.device_put(self.padded(prompts, rows), self.placement.rows())  # every host has all prompts
            with self.placement.active():
                answers = jax.device_get(self.answer(params, variables, batch, knobs))
            for row, answer in zip(rows, answers, strict=False):
                found[row] = answer
        cut = [self.cut(answer) for answer in found]
        return Generated(tuple(tokens for tokens, _ in cut), np.array([end for _, end in cut], np.int32))

    def stream(self, params: Flat, variables: Flat, prompt: Sequence[int] | np.ndarray) -> Iterator[int]:
        """The tokens of one answer as they come, the same as of `__call__`, without the end token.

        Raises:
            ConfigError: beam search, which knows no token before it knows all; a prompt without a token or too long.
        """
        if self.settings.beams > 1:
            raise ConfigError("beams: beam search decides on an answer as a whole and cannot be streamed; set beams to 1")
        self.check([len(prompt)])
        params, knobs = self.ready(params), self.knobs()
        batch = jax.device_put(self.padded([prompt], [0]), self.placement.rows())
        with self.placement.active():
            token, context = self.first_token(params, variables, batch, knobs)
        for step in range(1, self.settings.max_new_tokens + 1):
            said = int(jax.device_get(token)[0])
            if said in self.ends:
                return
            yield said
            if step < self.settings.max_new_tokens:
                with self.placement.active():
                    token, context = self.next_token(
                        params, variables, batch["row"], token, context, self.placement.put(np.int32(step)), knobs
                    )

    # -- the batches ----------------------------------------------------------------------------------------------------

    def check(self, lengths: Sequence[int]) -> None:
        """Raises:
        ConfigError: prompts without a token, or too long for the model.
        """
        new, most = self.settings.max_new_tokens, self.max_tokens
        problems = [f"prompt {row} is empty; it needs at least one token" for row, length in enumerate(lengths) if length == 0]
        if most is not None:
            problems += [
                f"prompt {row}: {length} tokens and max_new_tokens {new} are more than the {most} positions of the model; shorten one of them"
                for row, length in enumerate(lengths)
                if length + new > most
            ]
        if problems:
            raise ConfigError(problems)

    def batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Numbers of the prompts of each batch, prompts of like length together."""
        order = np.argsort(lengths, kind="stable").tolist()
        size = self.rows(len(lengths))
        return (order[start : start + size] for start in range(0, len(order), size))

    def rows(self, prompts: int) -> int:
        """Rows of a batch: no more than so many prompts need, rounded so that few shapes are compiled."""
        ways = self.placement.batch_ways
        wanted = min(self.batch_size, 1 << max(prompts - 1, 0).bit_length())
        return -(-wanted // ways) * ways

    def padded(self, prompts: Sequence[Sequence[int] | np.ndarray], rows: Sequence[int]) -> dict[str, np.ndarray]:
        """The batch of these prompts: `tokens` and `segment_ids` i32[B, P], `row` i32[B]; rows that fill up are number -1."""
        size = self.rows(len(prompts))
        width = max(NARROWEST, 1 << max(len(prompts[row]) - 1 for row in rows).bit_length())
        batch = {name: np.zeros((size, width), np.int32) for name in ("tokens", "segment_ids")} | {"row": np.full(size, -1, np.int32)}
        for place, row in enumerate(rows):
            start = width - len(prompts[row])
            batch["tokens"][place, start:] = prompts[row]
            batch["segment_ids"][place, start:] = 1
            batch["row"][place] = row
        return batch

    def cut(self, answer: np.ndarray) -> tuple[np.ndarray, int]:
        """(tokens before the first end token, that end token or -1)."""
        at = np.flatnonzero(np.isin(answer, self.ends))
        return (answer, -1) if not len(at) else (answer[: at[0]], int(answer[at[0]]))

    # -- on the devices -------------------------------------------------------------------------------------------------

    def ready(self, params: Flat) -> Flat:
        """The big arrays in the precision they are computed in: rounded once here and not at every token."""
        big = {key: x for key, x in params.items() if key.endswith(BIG) and x.dtype == jnp.float32}
        return params if jnp.dtype(self.dtype) == jnp.float32 or not big else {**params, **self.rounded(big)}

    @cached_property
    def rounded(self) -> Any:
        return jax.jit(lambda big: {key: x.astype(self.dtype) for key, x in big.items()})

    def knobs(self) -> Knobs:
        settings = self.settings
        values: dict[str, Any] = {"seed": np.uint32(settings.seed), "temperature": np.float32(settings.temperature)}
        values |= {"length_penalty": np.float32(settings.length_penalty)} | (
            {} if settings.top_p is None else {"top_p": np.float32(settings.top_p)}
        )
        return self.placement.put(values)

    @cached_property
    def answer(self) -> Any:
        """(params, variables, batch, knobs) -> i32[B, N]: whole answers, end tokens behind them."""
        return jax.jit(self._answer, out_shardings=self.placement.replicated)

    @cached_property
    def first_token(self) -> Any:
        """(params, variables, batch, knobs) -> (i32[B], context)."""
        return jax.jit(self._first_token)

    @cached_property
    def next_token(self) -> Any:
        """(params, variables, row, token, context, step, knobs) -> (i32[B], context); the context given is used up."""
        return jax.jit(self._next_token, donate_argnums=4)

    def _choose(self, logits: Float[Array, "B V"], row: Int[Array, " B"], step: Int[Array, ""], knobs: Knobs) -> Int[Array, " B"]:
        if not self.settings.draws:
            return greedy(logits)
        return draw(logits, row_keys(knobs["seed"], row, step), knobs["temperature"], self.settings.top_k, knobs.get("top_p"))

    def _first_token(self, params: Flat, variables: Flat, batch: Flat, knobs: Knobs) -> tuple[Int[Array, " B"], Context]:
        model, new = self.blueprint.build(params, variables), self.settings.max_new_tokens
        logits, context = read_prompts(model, batch["tokens"], batch["segment_ids"], new, self.dtype)
        return self._choose(logits, batch["row"], jnp.int32(0), knobs), context

    def _next_token(
        self, params: Flat, variables: Flat, row: Array, token: Array, context: Context, step: Array, knobs: Knobs
    ) -> tuple[Int[Array, " B"], Context]:
        logits, context = read_token(self.blueprint.build(params, variables), token, context)
        return self._choose(logits, row, step, knobs), context

    def _answer(self, params: Flat, variables: Flat, batch: Flat, knobs: Knobs) -> Int[Array, "B N"]:
        settings, new = self.settings, self.settings.max_new_tokens
        absent = batch["row"] < 0
        if settings.beams > 1:
            model = self.blueprint.build(params, variables)
            logits, context = read_prompts(model, batch["tokens"], batch["segment_ids"], new, self.dtype)
            return beam_search(
                logits, context,
                # built anew inside the loop: a module may not be changed by a trace other than its own
                lambda token, context: read_token(self.blueprint.build(params, variables), token, context),
                beams=settings.beams, new=new, length_penalty=knobs["length_penalty"], ends=self.ends, absent=absent,
            )  # fmt: skip

        def goes_on(state: Any) -> Array:
            step, _, _, done, _ = state
            return (step < new) & ~done.all()

        def one_more(state: Any) -> Any:
            step, token, answers, done, context = state
            token, context = self._next_token(params, variables, batch["row"], token, context, step, knobs)
            token = jnp.where(done, fill, token)
            return step + 1, token, answers.at[:, step].set(token), done | is_end(token, self.ends), context

        fill = self.ends[0] if self.ends else 0
        token, context = self._first_token(params, variables, batch, knobs)
        answers = jnp.full((len(token), new), fill, jnp.int32).at[:, 0].set(token)
        state = (jnp.int32(1), token, answers, absent | is_end(token, self.ends), context)
        return jax.lax.while_loop(goes_on, one_more, state)[2]


def pieces(tokens: Iterator[int], decode: Any) -> Iterator[str]:
    """The text of tokens as they come, in whole characters; joined, the pieces are `decode` of all tokens.

    Args:
        decode: list of tokens -> text. It is given all tokens so far, because a token's text may depend on those around it.
    """
    seen: list[int] = []
    said = ""
    for token in tokens:
        seen.append(token)
        text = decode(seen)
        if text.startswith(said) and len(text) > len(said) and not text.endswith(REPLACEMENT):
            yield text[len(said) :]
            said = text
    rest = decode(seen)
    if rest != said and rest.startswith(said):
        yield rest[len(said) :]
