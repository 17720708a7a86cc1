"""A component is its own config: a frozen pydantic model with behaviour, chosen in YAML by `kind`.

There is no `FooConfig` beside `Foo`: what YAML describes is the object that does the work, so nothing is written twice.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema


class Component(BaseModel):
    """Frozen, strict about unknown keys, hashable, equal by value."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, ser_json_inf_nan="strings")


def nearest(word: str, known: Mapping[str, Any] | list[str] | tuple[str, ...]) -> str:
    """`; did you mean "x"?` for the closest known word, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f'; did you mean "{close[0]}"?' if close else ""


def load_class(where: str) -> type:
    """The object named by `"package.module:Name"`.

    Raises:
        PydanticCustomError: the module or the name does not exist.
    """
    module, _, name = where.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise PydanticCustomError("kind", "kind {where}: no module named {module}", {"where": where, "module": str(error.name)}) from error
    except AttributeError as error:
        raise PydanticCustomError("kind", "kind {where}: {module} has no {name}", {"where": where, "module": module, "name": name}) from error


@dataclass(frozen=True)
class OneOf:
    """Marks a field that holds one component of a lazy table: `task: Annotated[Task, OneOf(TASKS)]`.

    In YAML: `{kind: name, ...}`, the bare name when nothing else is set, or `kind: package.module:Class` for a class
    outside the table. Dumping writes the `kind` back, so YAML -> object -> YAML -> equal object.
    """

    table: Mapping[str, str]  # kind -> "module:Class"

    def __hash__(self) -> int:
        return id(self.table)

    def find(self, kind: str) -> type[Component]:
        if kind in self.table:
            return load_class(self.table[kind])
        if ":" in kind:
            return load_class(kind)
        raise PydanticCustomError(
            "kind",
            "unknown kind {kind}{hint} (known: {known})",
            {"kind": f'"{kind}"', "hint": nearest(kind, self.table), "known": ", ".join(sorted(self.table))},
        )

    def load(self, value: Any) -> Any:
        if isinstance(value, str):
            value = {"kind": value}
        if not isinstance(value, Mapping):
            return value
        if "kind" not in value:
            raise PydanticCustomError("kind", '"kind" is missing (known: {known})', {"known": ", ".join(sorted(self.table))})
        return self.find(value["kind"]).model_validate({k: v for k, v in value.items() if k != "kind"})

    def kind(self, value: Component) -> str:
        where = f"{type(value).__module__}:{type(value).__name__}"
        return next((k for k, v in self.table.items() if v == where), where)

    def dump(self, value: Component) -> dict[str, Any]:
        return {"kind": self.kind(value), **value.model_dump()}

    def __get_pydantic_core_schema__(self, base: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(
            self.load,
            core_schema.is_instance_schema(base),
            serialization=core_schema.plain_serializer_function_ser_schema(self.dump),
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """One alternative per kind; loads every class of the table, so only editors and `describe` ask for it."""
        options: list[dict[str, Any]] = [{"type": "string", "enum": sorted(self.table)}]
        for kind in sorted(self.table):
            body = self.find(kind).model_json_schema(ref_template="#/$defs/{model}")
            body["properties"] = {"kind": {"const": kind}, **body.get("properties", {})}
            body["required"] = ["kind", *body.get("required", [])]
            options.append(body)
        return {"anyOf": options}
