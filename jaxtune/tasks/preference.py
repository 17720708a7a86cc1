"""Learning from pairs: an answer that was preferred and one that was not, to the same prompt (DPO, IPO, ORPO).

Both answers lie in one row as two segments, as packing puts texts behind each other, so a batch is one pass of the model. What the
model said before training, the reference of DPO and IPO, is computed once over the data and kept, and no second model is in memory.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from pydantic import Field, model_validator

from jaxtune.core.weighted import Weighted
from jaxtune.data import cache
from jaxtune.data.batch import join
from jaxtune.data.checks import Parts, Problem, check_texts
from jaxtune.data.examples import Examples, Ragged
from jaxtune.data.processor import Limits, Processor
from jaxtune.data.sources.base import Record, Records
from jaxtune.data.special_tokens import SpecialTokens
from jaxtune.data.transforms import passages, targets
from jaxtune.data.transforms.chat_template import ChatTemplate, as_turns
from jaxtune.layers.dropout import Dropout
from jaxtune.models.family import Domain, Outputs
from jaxtune.models.load import Base
from jaxtune.tasks.base import Columns, Encoded, Predictions, Task
from jaxtune.tasks.reading import behind, read
from jaxtune.tasks.text import chat_template, learned, load_tokenizer

METRICS = ("preference_accuracy", "reward_margin")
SIDES = (1, 2)  # segments of a row: the preferred answer, the other one
COLUMNS = ("tokens", "segment_ids", "positions", "token_weight")


class Preference(Task):
    """Reads `prompt`, `chosen` and `rejected`; raises the first answer's probability over the second's."""

    domain: ClassVar[Domain] = "text"
    tells: ClassVar[tuple[str, ...]] = ("loss", "reward", "log_probability", "tokens")

    prompt: str = Field(default="prompt", description="column with what is given")
    chosen: str = Field(default="chosen", description="column with the preferred answer")
    rejected: str = Field(default="rejected", description="column with the other answer")
    as_chat: bool = Field(default=False, description="prompt and answers become a user's and an assistant's turn of the chat template")
    template_variables: dict[str, Any] = Field(
        default_factory=dict, description="what the chat template asks for by name, e.g. {enable_thinking: false}"
    )
    today: datetime.date | None = Field(
        default=None, description="the date for a chat template that writes today's; without one it has no clock, and some refuse that"
    )
    loss: Literal["dpo", "ipo", "orpo"] = Field(
        default="dpo",
        description="dpo: sigmoid of the log-odds against the reference (arXiv 2305.18290); ipo: their square distance from 1 / (2 beta), per "
        "token (2310.12036); orpo: likelihood of the preferred answer plus odds ratio, without a reference (2403.07691)",
    )
    beta: Annotated[float, Field(gt=0)] = Field(
        default=0.1, description="how far the model may move from the reference; orpo: weight of the odds ratio"
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        default=0.0, description="dpo: share of pairs that are taken to be the wrong way round"
    )

    @model_validator(mode="before")
    @classmethod
    def usual(cls, values: Any) -> Any:
        """Fills in metrics and best."""
        if not isinstance(values, Mapping):
            return values
        return {"metrics": METRICS, "best": "preference_accuracy" if "metrics" not in values else "loss", **values}

    @model_validator(mode="after")
    def every_setting_acts(self) -> Preference:
        problems = [f"{name}: has no place without as_chat" for name in ("template_variables", "today") if getattr(self, name)]
        problems = [] if self.as_chat else problems
        if self.label_smoothing and self.loss != "dpo":
            problems.append(f"label_smoothing: has no effect on {self.loss}; leave it out")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def needs_reference(self) -> bool:
        return self.loss != "orpo"

    def row_tokens(self, limit: int) -> int:
        """Both answers lie in one row."""
        return 2 * limit

    # -- what it reads --------------------------------------------------------------------------------------------------

    @property
    def content(self) -> tuple[str, ...]:
        return (self.prompt, self.chosen, self.rejected)

    @property
    def light(self) -> tuple[str, ...]:
        return self.content

    def processor(self, base: Base) -> Processor:
        return Processor(tokenizer=load_tokenizer(base))

    def check(self, columns: Columns, parts: Parts) -> list[Problem]:
        used = sorted({int(row) for rows in parts.values() for row in rows})
        problems = [problem for name in self.content for problem in check_texts(columns[name], used, name, messages=self.as_chat)]
        same = tuple(row for row in used if columns[self.chosen][row] == columns[self.rejected][row])
        if same:
            problems.append(
                Problem(f'{len(same)} pairs have the same text in "{self.chosen}" and "{self.rejected}"', "leave them out", same)
            )
        return problems

    def outputs(self, names: Sequence[str]) -> Outputs:
        del names
        return "language"

    def encode(self, records: Records, names: tuple[str, ...], processor: Processor, limits: Limits) -> Encoded:
        """A row per pair: the tokens of both, one behind the other. `max_tokens` holds for each of the two.

        A pair whose answers are the same tokens, once the template has trimmed them or their ends are cut, prefers nothing: it is left out.

        Raises:
            DataError: also where nothing is learned, or never where an answer ends.
        """
        del names
        tokenizer, limit = processor.tokenizer, limits.max_tokens
        assert tokenizer is not None and limit is not None
        special = SpecialTokens.load(tokenizer)
        template = chat_template(tokenizer, self.template_variables, self.today) if self.as_chat else None

        def side(column: str) -> Examples:
            made = passages.passages(lambda row: self.passage(records[row], column, template), len(records))
            return targets.encode(tokenizer, made, special, max_tokens=limit, over_length=limits.over_length, append_eos=not self.as_chat)

        def build() -> Examples:
            sides = [side(column) for column in (self.chosen, self.rejected)]
            kept = np.logical_and(*(np.asarray(one.facts["kept"]) for one in sides))
            kept &= [not np.array_equal(*(one.row(row)["tokens"] for one in sides)) for row in range(len(records))]
            rows = [join([one.row(row) for one in sides]) if kept[row] else {} for row in range(len(records))]
            columns = {
                name: Ragged.of([row.get(name, ()) for row in rows], np.float32 if name == "token_weight" else np.int32) for name in COLUMNS
            }
            facts = {"full_length": np.maximum(*(one.facts["full_length"] for one in sides)), "kept": kept}
            return Examples(columns, facts=facts | {"blurred": np.logical_or(*(one.facts["blurred"] for one in sides))})

        key = cache.fingerprint(
            {
                "records": limits.key,
                "task": [type(self).__name__, self.prompt, self.chosen, self.rejected, self.as_chat],
                "template": None if template is None else template.fingerprint,
                "tokenizer": tokenizer.fingerprint,
                "end": special.end,
                "stops": special.stops,
                "max_tokens": limit,
                "over_length": limits.over_length,
            }
        )
        examples, hit = cache.load_or_build(limits.cache, key, build)
        report = learned(examples, tokenizer, special, limits, must_stop=True)
        report |= {"template": None if template is None else template.fingerprint, "from_cache": hit}
        return Encoded(examples, np.flatnonzero(examples.facts["kept"]), report)

    def passage(self, record: Record, column: str, template: ChatTemplate | None) -> passages.Passage:
        """The prompt with one of its answers.

        Raises:
            DataError: they are neither text nor, as a chat, messages.
        """
        if template is None:
            return passages.of_completion(record[self.prompt], record[column])
        answer = as_turns(record[column], "assistant")
        whole = answer[0]["role"] != "assistant"  # the conversation with the prompt at its beginning
        return passages.of_chat(template, answer if whole else [*as_turns(record[self.prompt], "user"), *answer], turns="last")

    # -- on the device --------------------------------------------------------------------------------------------------

    def predict(
        self, model: nnx.Module, batch: Mapping[str, jax.Array], noise: Dropout | None = None, training: bool = False
    ) -> Predictions:
        """log_probability and tokens f32[B, 2] of the two answers."""
        reading, segments = read(model, batch, noise, training=training), behind(batch["segment_ids"])
        by_side = [reading.weight * (segments == side) for side in SIDES]
        found = reading.loss().log_probability
        sums = jnp.stack([(found * weight).sum(1) for weight in by_side], 1)
        return {"log_probability": sums, "tokens": jnp.stack([weight.sum(1) for weight in by_side], 1)}

    def objective(self, model: nnx.Module, batch: Mapping[str, jax.Array], noise: Dropout | None) -> Weighted:
        losses, _ = self.losses(self.predict(model, batch, noise, training=True), batch)
        return Weighted.of(losses, batch["loss_weight"])

    def assess(self, model: nnx.Module, batch: Mapping[str, jax.Array]) -> tuple[Weighted, Predictions]:
        """An example's `reward` f32[B, 2] is what it gained over the reference, times beta; for orpo its log-odds."""
        told = self.predict(model, batch)
        losses, reward = self.losses(told, batch)
        return Weighted.of(losses, batch["loss_weight"]), {"loss": losses, "reward": reward, **told}

    def losses(self, told: Predictions, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """(loss f32[B], reward f32[B, 2]) of pairs."""
        tokens = jnp.maximum(told["tokens"], 1.0)
        if self.loss == "orpo":
            mean = told["log_probability"] / tokens
            odds = mean - jnp.log1p(-jnp.exp(jnp.minimum(mean, -1e-6)))
            return -mean[:, 0] - self.beta * jax.nn.log_sigmoid(odds[:, 0] - odds[:, 1]), odds
        gained = told["log_probability"] - batch["reference"]
        if self.loss == "ipo":
            gained = gained / tokens
            return jnp.square(gained[:, 0] - gained[:, 1] - 1.0 / (2.0 * self.beta)), self.beta * gained
        margin = self.beta * (gained[:, 0] - gained[:, 1])
        losses = -(1.0 - self.label_smoothing) * jax.nn.log_sigmoid(margin) - self.label_smoothing * jax.nn.log_sigmoid(-margin)
        return losses, self.beta * gained
