"""Language modelling, left to right: plain text, prompt and completion, or chat messages; the loss is over the tokens that are to be learned.

The head is never applied to a whole batch: `lm_loss` multiplies it with the positions that carry a loss, a chunk at a time.
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

from jaxtune.core.errors import ConfigError
from jaxtune.core.weighted import Weighted
from jaxtune.data import cache
from jaxtune.data.checks import Parts, Problem, check_texts
from jaxtune.data.examples import Examples
from jaxtune.data.processor import Limits, Processor
from jaxtune.data.sources.base import Record, Records
from jaxtune.data.special_tokens import SpecialTokens
from jaxtune.data.transforms import passages, targets
from jaxtune.data.transforms.chat_template import ChatTemplate, as_turns, read_messages, read_tools
from jaxtune.data.transforms.tokenize import Tokenizer
from jaxtune.layers.dropout import Dropout
from jaxtune.models.family import Domain, Outputs
from jaxtune.models.load import Base
from jaxtune.tasks.base import Columns, Encoded, Predictions, Task, first_number
from jaxtune.tasks.reading import read
from jaxtune.tasks.teacher import Teacher
from jaxtune.tasks.text import chat_template, learned, load_tokenizer

FORMS = ("text", "completion", "messages")
WRITTEN = (
    "text",
    "prompt",
    "completion",
    "messages",
    "train_on",
    "turns",
    "as_chat",
    "system",
    "template_variables",
    "tools",
    "append_eos",
)  # decide the tokens
USUAL = {"metrics": ("perplexity", "token_accuracy"), "best": "loss"}


class CausalLM(Task):
    """Learns to continue text. Exactly one of `text`, `prompt` with `completion`, and `messages` says where it stands."""

    domain: ClassVar[Domain] = "text"
    generates: ClassVar[bool] = True
    packs: ClassVar[bool] = True
    tells: ClassVar[tuple[str, ...]] = ("loss", "total_loss", "tokens", "right_tokens")

    text: str | None = Field(default=None, description="column with plain text; every token is learned")
    prompt: str | None = Field(default=None, description="column with what is given")
    completion: str | None = Field(default=None, description="column with what is to be learned after the prompt")
    messages: str | None = Field(
        default=None, description="column with a conversation, a list of {role, content}, in the checkpoint's own chat template"
    )
    train_on: Literal["answers", "all"] = Field(
        default="answers", description="answers: the loss is over completions and assistant turns; all: over every token, as of plain text"
    )
    turns: Literal["all", "last"] = Field(default="all", description="of a conversation, which assistant turns are learned")
    as_chat: bool = Field(default=False, description="prompt and completion become a user's and an assistant's turn of the chat template")
    system: str | None = Field(default=None, description="a system message before every conversation that has none")
    template_variables: dict[str, Any] = Field(
        default_factory=dict, description="what the chat template asks for by name, e.g. {enable_thinking: false}"
    )
    today: datetime.date | None = Field(
        default=None, description="the date for a chat template that writes today's; without one it has no clock, and some refuse that"
    )
    tools: str | None = Field(
        default=None, description="column with the functions that a conversation may call, a list of JSON schemas or JSON text of one"
    )
    append_eos: bool = Field(
        default=True, description="plain text and completions end with the end-of-sequence token, and learn it; false for chats"
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, description="share of the target spread over the vocabulary")
    z_loss: Annotated[float, Field(ge=0)] = Field(default=0.0, description="weight of the squared log of the softmax's denominator")
    balance: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="weight of the auxiliary loss that keeps a mixture's experts evenly used (router_aux_loss_coef)"
    )
    teacher: Teacher | None = Field(default=None, description="a model whose probabilities are learned beside the text (distillation)")

    @model_validator(mode="before")
    @classmethod
    def usual(cls, values: Any) -> Any:
        """Fills in metrics and best, and what the form of the data decides, so that a resolved experiment says what was done."""
        if not isinstance(values, Mapping):
            return values
        filled = {**USUAL, **values}
        if values.get("text") is not None:
            filled.setdefault("train_on", "all")
        if values.get("messages") is not None or values.get("as_chat") is True:
            filled.setdefault("append_eos", False)
        numbers = {"loss", *(number for metric in filled["metrics"] or () if (number := first_number(metric)))}
        return filled if "best" in values or filled["best"] in numbers else {**filled, "best": "loss"}

    @model_validator(mode="after")
    def one_form(self) -> CausalLM:
        forms = [name for name in FORMS if getattr(self, name) is not None]
        problems = []
        if len(forms) != 1:
            found = ", ".join(forms) or "none"
            problems.append(f"give exactly one of text, completion (with prompt) and messages; found {found}")
        if (self.prompt is None) != (self.completion is None):
            problems.append("prompt and completion go together")
        if self.as_chat and self.completion is None:
            problems.append("as_chat: makes turns of prompt and completion; it has no effect without them")
        problems += [
            f"{name}: has no place without messages or as_chat"
            for name in ("system", "template_variables", "today")
            if getattr(self, name) and not self.chats
        ]
        if self.messages is None:
            idle = [("turns", self.turns != "all"), ("tools", self.tools is not None)]
            problems += [f"{name}: has no effect without messages" for name, is_set in idle if is_set]
        if self.chats and self.append_eos:
            problems.append("append_eos: the chat template ends its turns itself; leave it out")
        if self.text is not None and self.train_on == "answers":
            problems.append("train_on: answers has no meaning for plain text, of which every token is learned; leave it out")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def chats(self) -> bool:
        """Whether the checkpoint's chat template writes the text."""
        return self.messages is not None or self.as_chat

    # -- what it reads --------------------------------------------------------------------------------------------------

    @property
    def content(self) -> tuple[str, ...]:
        return tuple(name for name in (self.text, self.prompt, self.completion, self.messages, self.tools) if name is not None)

    @property
    def light(self) -> tuple[str, ...]:
        return tuple(name for name in (self.text, self.prompt, self.completion) if name is not None)

    def from_text(self, text: str) -> dict[str, Any]:
        """A prompt, or a user's message."""
        if self.messages is not None:
            return {self.messages: [{"role": "user", "content": text}], **({} if self.tools is None else {self.tools: None})}
        return {self.prompt or self.text or "": text}

    @property
    def answers(self) -> tuple[str, ...]:
        return () if self.completion is None else (self.completion,)

    def processor(self, base: Base) -> Processor:
        return Processor(tokenizer=load_tokenizer(base))

    def check(self, columns: Columns, parts: Parts) -> list[Problem]:
        used = sorted({int(row) for rows in parts.values() for row in rows})
        return [problem for name in self.light for problem in check_texts(columns[name], used, name, messages=self.as_chat)]

    def outputs(self, names: Sequence[str]) -> Outputs:
        del names
        return "language"

    def encode(self, records: Records, names: tuple[str, ...], processor: Processor, limits: Limits) -> Encoded:
        """Token rows with their weights as targets, cached on disk under everything that decides them.

        Raises:
            DataError: also where nothing is learned, or never where an answer ends.
        """
        del names
        tokenizer, limit = processor.tokenizer, limits.max_tokens
        assert tokenizer is not None and limit is not None
        special, template = SpecialTokens.load(tokenizer), self.template(tokenizer)

        def build() -> Examples:
            made = passages.passages(lambda row: self.passage(records[row], template), len(records))
            return targets.encode(tokenizer, made, special, max_tokens=limit, over_length=limits.over_length, append_eos=self.append_eos)

        key = cache.fingerprint(
            {
                "records": limits.key,
                "task": self.model_dump(mode="json", include=set(WRITTEN)),
                "template": None if template is None else template.fingerprint,
                "tokenizer": tokenizer.fingerprint,
                "end": special.end,
                "stops": special.stops,
                "max_tokens": limit,
                "over_length": limits.over_length,
            }
        )
        examples, hit = cache.load_or_build(limits.cache, key, build)
        must_stop = self.chats or (self.completion is not None and self.append_eos)
        report = learned(examples, tokenizer, special, limits, must_stop=must_stop)
        report |= {"template": None if template is None else template.fingerprint, "from_cache": hit}
        return Encoded(examples, np.flatnonzero(examples.facts["kept"]), report)

    def template(self, tokenizer: Tokenizer) -> ChatTemplate | None:
        """The checkpoint's chat template, where the task writes conversations.

        Raises:
            ModelError: it has none.
        """
        return chat_template(tokenizer, self.template_variables, self.today) if self.chats else None

    def passage(self, record: Record, template: ChatTemplate | None) -> passages.Passage:
        """What the model reads of a record, and what of it is learned.

        Raises:
            DataError: the record does not hold what the task reads.
        """
        if self.text is not None:
            return passages.of_text(record[self.text])
        if template is None:
            assert self.prompt is not None and self.completion is not None
            found = passages.of_completion(record[self.prompt], record[self.completion])
        else:
            turns = self.turns if self.completion is None else "last"
            found = passages.of_chat(template, self.conversation(record), tools=self.functions(record), turns=turns)
        return passages.everything(found) if self.train_on == "all" else found

    def conversation(self, record: Record, *, answered: bool = True) -> list[dict[str, Any]]:
        """The record's messages; without the assistant's last turn where it is to be answered.

        Raises:
            DataError: they are malformed.
        """
        if self.messages is not None:
            messages = read_messages(record[self.messages])
            if not answered and messages[-1]["role"] == "assistant":
                messages = messages[:-1]
        else:
            assert self.prompt is not None and self.completion is not None
            messages = as_turns(record[self.prompt], "user")
            if answered:
                messages = [*messages, *as_turns(record[self.completion], "assistant")]
        if self.system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        return messages

    def functions(self, record: Record) -> list[Any] | None:
        """What the record's conversation may call.

        Raises:
            DataError: it is no list.
        """
        return None if self.tools is None else read_tools(record[self.tools])

    def prompts(self, records: Sequence[Record], tokenizer: Tokenizer) -> list[np.ndarray]:
        """What generation starts from, i32[..] per record, as the model was trained to see it.

        Raises:
            DataError: a record does not hold what the task reads.
        """
        template = self.template(tokenizer)
        out = []
        for record in records:
            if template is not None:
                text = template.render(self.conversation(record, answered=False), tools=self.functions(record), prompt=True)
                row = tokenizer.backend.encode(text, add_special_tokens=False).ids
            else:
                row = targets.begin(tokenizer, passages.of_text(record[self.prompt or self.text or ""]).text)
            out.append(np.asarray(row, np.int32))
        return out

    # -- on the device --------------------------------------------------------------------------------------------------

    def predict(
        self, model: nnx.Module, batch: Mapping[str, jax.Array], noise: Dropout | None = None, training: bool = False
    ) -> Predictions:
        """log_probability f32[B], of the targets of an example together, and their number tokens f32[B]."""
        reading = read(model, batch, noise, training=training)
        return {"log_probability": (reading.loss().log_probability * reading.weight).sum(1), "tokens": reading.weight.sum(1)}

    def objective(self, model: nnx.Module, batch: Mapping[str, jax.Array], noise: Dropout | None) -> Weighted:
        reading = read(model, batch, noise, training=True)
        losses = reading.loss(label_smoothing=self.label_smoothing, z_loss=self.z_loss).loss
        if self.teacher is not None:
            losses = (1.0 - self.teacher.weight) * losses + self.teacher.weight * self.teacher.distance(reading, batch)
        total, weight = jnp.sum(losses * reading.weight), jnp.sum(reading.weight)
        if self.balance:
            if reading.imbalance is None:
                raise ConfigError("task.balance: has no effect on a model without a mixture of experts; leave it out")
            total += self.balance * reading.imbalance * weight
        return Weighted(total, weight)

    def assess(self, model: nnx.Module, batch: Mapping[str, jax.Array]) -> tuple[Weighted, Predictions]:
        """The loss is the mean over all target tokens, without smoothing, z-loss, balance and teacher; an example's `loss` is the mean over its own."""
        reading = read(model, batch)
        found, weight = reading.loss(), reading.weight
        total, tokens, right = ((values * weight).sum(1) for values in (found.loss, jnp.ones_like(weight), found.is_highest))
        told = {"loss": total / jnp.maximum(tokens, 1e-9), "total_loss": total, "tokens": tokens, "right_tokens": right}
        return Weighted(total.sum(), tokens.sum()), told
