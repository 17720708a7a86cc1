"""How text is made from a prompt: greedy, drawn, or by beam search, as settings; what has no effect beside the others is refused."""

from __future__ import annotations

from pydantic import Field, model_validator

from jaxtune.core.component import Component
from jaxtune.core.errors import ConfigError


class Generation(Component):
    """Greedy as it stands; with a temperature tokens are drawn; with several beams the most probable whole answer is looked for."""

    max_new_tokens: int = Field(default=64, ge=1, description="an answer ends here, if no end token came before")
    temperature: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="0: always the most probable token; otherwise tokens are drawn, 1 as the model says",
    )
    top_k: int | None = Field(default=None, ge=1, description="draw among the k most probable tokens only")
    top_p: float | None = Field(
        default=None, gt=0, le=1, description="draw among the fewest most probable tokens that have this much probability together"
    )
    beams: int = Field(default=1, ge=1, description="answers that are followed at once; above 1 beam search")
    length_penalty: float = Field(
        default=1.0,
        allow_inf_nan=False,
        description="beam search prefers the greatest log-probability divided by length to this power; above 1 favours longer answers",
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="of drawn tokens; equal seeds give equal answers, whatever the batch")

    @model_validator(mode="after")
    def every_setting_acts(self) -> Generation:
        """Raises:
        ConfigError: settings that do not go together, all of them.
        """
        idle = [name for name in ("top_k", "top_p", "seed") if getattr(self, name) != type(self).model_fields[name].default]
        problems = []
        if self.beams > 1 and self.draws:
            problems.append(
                f"temperature: {self.temperature:g} draws tokens, which a search with {self.beams} beams never does; leave one of them out"
            )
        if not self.draws:
            problems += [
                f"{name}: has no effect at temperature 0, where nothing is drawn; set a temperature (1 draws as the model says)"
                for name in idle
            ]
        if self.beams == 1 and self.length_penalty != 1.0:
            problems.append("length_penalty: has no effect without beam search; set beams to 2 or more")
        if problems:
            raise ConfigError(problems)
        return self

    @property
    def draws(self) -> bool:
        return self.temperature > 0
