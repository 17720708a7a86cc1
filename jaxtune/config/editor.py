"""The JSON schema of an experiment, for editors that complete and check YAML: every setting of every kind, from the declarations."""

from __future__ import annotations

from typing import Any

from jaxtune.config.describe import tables
from jaxtune.config.schema import kinds
from jaxtune.config.words import table_name
from jaxtune.core.component import Component


def schema(root: type[Component]) -> dict[str, Any]:
    """JSON schema of an experiment for editors, with every kind of every table. Imports them all."""
    from pydantic.json_schema import models_json_schema

    choices = {id(choice.table): choice for choice in tables(root)}
    classes = {key: kinds(choice) for key, choice in choices.items()}
    models = list(dict.fromkeys([root, *(cls for table in classes.values() for cls in table.values())]))
    refs, document = models_json_schema([(cls, "validation") for cls in models], ref_template="#/$defs/{model}")
    definitions = dict(document["$defs"])
    names = {cls: refs[cls, "validation"]["$ref"].removeprefix("#/$defs/") for cls in models}
    for key, table in classes.items():
        for kind, cls in table.items():
            body = dict(definitions[names[cls]])
            body["properties"] = {"kind": {"const": kind}, **body.get("properties", {})}
            body["required"] = ["kind", *body.get("required", [])]
            definitions[f"{table_name(choices[key])}.{kind}"] = body

    def resolve(node: Any) -> Any:
        if isinstance(node, dict) and "x-table" in node:
            table = classes[node["x-table"]]
            bare = [kind for kind, cls in table.items() if not any(field.is_required() for field in cls.model_fields.values())]
            name = table_name(choices[node["x-table"]])
            options = [{"enum": bare}, *({"$ref": f"#/$defs/{name}.{kind}"} for kind in table)]
            own = {"type": "object", "properties": {"kind": {"type": "string", "pattern": ":"}}, "required": ["kind"]}
            return {k: resolve(v) for k, v in node.items() if k != "x-table"} | {"anyOf": [*options, own]}
        if isinstance(node, dict):
            return {k: resolve(v) for k, v in node.items()}
        return [resolve(part) for part in node] if isinstance(node, list) else node

    top = resolve(definitions[names[root]])
    top["properties"]["extends"] = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **top, "$defs": resolve(definitions)}
