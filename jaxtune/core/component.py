"""A component is its own config: a frozen pydantic model with behaviour, chosen in YAML by `kind`.

There is no `FooConfig` beside `Foo`: what YAML describes is the object that does the work, so nothing is written twice.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

from jaxtune.core.errors import ConfigError

COLLECT = {"collect_problems": True}  # validation context of config.read: a ConfigError of a validator joins the other problems


def _collect(value: Any, handler: core_schema.ValidatorFunctionWrapHandler, info: core_schema.ValidationInfo) -> Any:
    if not (info.context or {}).get("collect_problems"):
        return handler(value)
    try:
        return handler(value)
    except ConfigError as error:
        found = [InitErrorDetails(type=PydanticCustomError("config", "{text}", {"text": p}), input=None) for p in error.problems]
        raise ValidationError.from_exception_data("component", found) from error


def _strict_scalars(schema: Any, owner: type) -> None:
    """Sets `strict` on every bool, int and float schema of `owner`; other models inside have seen to their own."""
    if isinstance(schema, dict):
        if schema.get("type") == "model" and schema.get("cls") is not owner:
            return
        if schema.get("type") in ("bool", "int", "float"):
            schema["strict"] = True
        for key, part in schema.items():
            if key not in ("metadata", "serialization", "default"):
                _strict_scalars(part, owner)
    elif isinstance(schema, list | tuple):
        for part in schema:
            _strict_scalars(part, owner)


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return frozenset((key, _frozen(part)) for key, part in value.items())
    if isinstance(value, list | tuple):
        return tuple(_frozen(part) for part in value)
    return value


class Component(BaseModel):
    """Frozen, strict about unknown keys, hashable, equal by value.

    Numbers and truth values are taken as they are: "3", 3.0 and true are not whole numbers, and "yes" is not true.
    A validator may raise `ConfigError` with one or many problems: from Python it arrives as it is, while an experiment is
    read it is collected with everything else that is wrong.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, ser_json_inf_nan="strings")

    def __hash__(self) -> int:
        return hash((type(self), _frozen(self.__dict__)))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        if schema["type"] in ("definition-ref", "definitions", "function-wrap"):  # seen before: already wrapped
            return schema
        inner: Any = dict(schema)
        ref = inner.pop("ref", None)
        _strict_scalars(inner, cls)
        return core_schema.with_info_wrap_validator_function(_collect, inner, ref=ref)


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean "x"?` for the closest known word (capitals, `-` and `_` make no difference), or an empty string."""
    plain = {name.lower().replace("-", "_"): name for name in known}
    close = difflib.get_close_matches(str(word).lower().replace("-", "_"), list(plain), n=1, cutoff=0.6)
    return f'; did you mean "{plain[close[0]]}"?' if close else ""


def load_class(where: str) -> type:
    """The object named by `"package.module:Name"`.

    Raises:
        PydanticCustomError: the module or the name does not exist.
    """
    module, _, name = where.partition(":")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise PydanticCustomError("kind", "kind {where}: no module named {name}", {"where": where, "name": str(error.name)}) from error
    except (ImportError, TypeError, ValueError) as error:
        raise PydanticCustomError("kind", "kind {where}: {reason}", {"where": where, "reason": str(error)}) from error
    if not hasattr(found, name):
        raise PydanticCustomError("kind", "kind {where}: {module} has no {name}", {"where": where, "module": module, "name": name})
    return getattr(found, name)


@dataclass(frozen=True)
class OneOf:
    """Marks a field that holds one component of a lazy table: `task: Annotated[Task, OneOf(TASKS)]`.

    In YAML: `{kind: name, ...}`, the bare name when nothing else is set, or `kind: package.module:Class` for a class
    outside the table. Dumping writes the `kind` back, so YAML -> object -> YAML -> equal object.
    """

    table: Mapping[str, str]  # kind -> "module:Class"

    def __hash__(self) -> int:
        return id(self.table)

    @property
    def known(self) -> str:
        return ", ".join(sorted(self.table))

    def find(self, kind: str) -> type[Component]:
        """The class of a kind.

        Raises:
            PydanticCustomError: unknown kind, or a class that cannot be imported or is no component.
        """
        if not isinstance(kind, str):
            raise PydanticCustomError("kind", '"kind" must be a name (known: {known})', {"known": self.known})
        if kind in self.table:
            return load_class(self.table[kind])
        if ":" in kind:
            found = load_class(kind)
            if not (isinstance(found, type) and issubclass(found, Component)):
                raise PydanticCustomError("kind", "kind {where} is not a jaxtune Component", {"where": kind})
            return found
        text = {"kind": f'"{kind}"', "hint": nearest(kind, self.table), "known": self.known}
        raise PydanticCustomError("kind", "unknown kind {kind}{hint} (known: {known})", text)

    def load(self, value: Any, info: core_schema.ValidationInfo | None = None) -> Any:
        if isinstance(value, Component):
            return value
        if isinstance(value, str):
            value = {"kind": value}
        if not isinstance(value, Mapping):
            raise PydanticCustomError("kind", "must name a kind, or be a section with a kind (known: {known})", {"known": self.known})
        if "kind" not in value:
            instead = next((f'; write it instead of "{word}"' for word in ("type", "name", "class", "_target_") if word in value), "")
            raise PydanticCustomError("kind", '"kind" is missing{instead} (known: {known})', {"instead": instead, "known": self.known})
        settings = {k: v for k, v in value.items() if k != "kind"}
        return self.find(value["kind"]).model_validate(settings, context=info.context if info else None)

    def kind(self, value: Component | type[Component]) -> str:
        """The name of a component in the table, or `"module:Class"`."""
        cls = value if isinstance(value, type) else type(value)
        where = f"{cls.__module__}:{cls.__qualname__}"
        return next((k for k, v in self.table.items() if v == where), where)

    def dump(self, value: Component, info: core_schema.SerializationInfo | None = None) -> dict[str, Any]:
        if info is None:
            return {"kind": self.kind(value), **value.model_dump()}
        options = {name: getattr(info, name) for name in ("by_alias", "exclude_unset", "exclude_defaults", "exclude_none", "round_trip")}
        return {"kind": self.kind(value), **value.model_dump(mode=info.mode, context=info.context, **options)}

    def __get_pydantic_core_schema__(self, base: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_before_validator_function(
            self.load,
            core_schema.is_instance_schema(base),
            serialization=core_schema.plain_serializer_function_ser_schema(self.dump, info_arg=True),
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The bare names; `config.describe.schema` adds one alternative with its settings per kind."""
        return {
            "anyOf": [{"type": "string", "enum": sorted(self.table)}, {"type": "object", "required": ["kind"]}],
            "x-table": id(self.table),
        }
