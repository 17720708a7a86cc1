from __future__ import annotations

import pytest
from toy_experiment import Adamw, CrossEntropy, Phase, Toy

from jaxtune.config.describe import Description, find, tables
from jaxtune.config.editor import schema
from jaxtune.config.words import Row, describe, table_name
from jaxtune.core.errors import ConfigError


def test_rows_in_plain_words():
    assert describe(CrossEntropy) == [
        Row("label_smoothing", "number", "0.0", "at least 0, less than 1", "Probability given to the other classes."),
        Row("class_weights", "one of none, balanced, or list of number", "none", "", "Weights of the classes."),
    ]
    rows = {row.name: row for row in describe(Phase)}
    assert rows["train"] == Row("train", "list of text", "[*]", "at least 1 long", "Patterns that train.")
    assert rows["optimizer"].type == "one of the optimizers" and rows["optimizer"].default == "required"
    assert rows["stopping"].type == "list of rules" and rows["stopping"].default == "[]"
    assert {row.name: row for row in describe(Adamw)}["clip_norm"] == Row(
        "clip_norm", "number, or null", "1.0", "more than 0", "Largest norm of the gradients."
    )
    top = {row.name: row for row in describe(Toy)}
    assert (top["model"].type, top["phases"].type, top["task"].default) == ("section", "list of sections", "its defaults")


def test_every_table_is_found_by_its_name():
    assert {table_name(choice) for choice in tables(Toy)} == {"losses", "metrics", "optimizers", "rules", "schedules"}


@pytest.mark.parametrize(
    "thing", ["data", "phases", "model.base", "phases.0.optimizer", "phases.optimizer.schedule", "phases.optimizer.weight_decay"]
)
def test_keys(thing: str):
    found = find(thing, Toy)
    assert found.title == thing and found.text


def test_sections_tables_kinds_and_settings():
    assert [row.name for row in find("data", Toy).rows] == ["path", "max_tokens", "batch_size", "shuffle"]
    assert find("losses", Toy).kinds == {"cross_entropy": "-log p.", "focal": "-log p, discounted."}
    assert find("optimizers", Toy).kinds == {
        "adamw": "Adam with decoupled decay.",
        "gone": "kind toy_experiment_gone:Gone: no module named toy_experiment_gone",
        "sgd": "Plain descent.",
    }
    assert find("task.loss", Toy).kinds == find("losses", Toy).kinds
    assert find("adamw", Toy) == find("optimizers/adamw", Toy)
    assert find("cosine", Toy).title == "schedules/cosine"
    assert [row.name for row in find("clip_norm", Toy).rows] == ["optimizers/{adamw, sgd}.clip_norm"]
    assert [row.name for row in find("batch_size", Toy).rows] == ["data.batch_size"]
    assert find("family", Toy).rows[0].name == "model.base.family"


def test_hooks_come_first():
    bert = Description("bert", "A family.")
    assert find("bert", Toy, [lambda thing: None, lambda thing: bert if thing == "bert" else None]) is bert
    assert find("data", Toy, [lambda thing: None]).title == "data"


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        ("optimizers/adam", 'optimizers: unknown kind "adam"; did you mean "adamw"? (known: adamw, gone, sgd)'),
        (
            "optimizer/adamw",
            'there is no table "optimizer"; did you mean "optimizers"? (tables: losses, metrics, optimizers, rules, schedules)',
        ),
        (
            "label_smothing",
            'nothing is called "label_smothing"; did you mean "label_smoothing"? (sections: name, seed, model, task, data, phases; '
            "tables: losses, metrics, optimizers, rules, schedules; or a kind, or a setting)",
        ),
    ],
)
def test_unknown_things(thing: str, message: str):
    with pytest.raises(ConfigError) as caught:
        find(thing, Toy)
    assert str(caught.value) == message


def test_schema_refers_only_to_what_it_defines():
    made = schema(Toy)
    refs: set[str] = set()

    def walk(node: object) -> None:
        if isinstance(node, dict):
            assert "x-table" not in node
            refs.update(value for key, value in node.items() if key == "$ref")
            for part in node.values():
                walk(part)
        elif isinstance(node, list):
            for part in node:
                walk(part)

    walk(made)
    assert refs and all(ref.removeprefix("#/$defs/") in made["$defs"] for ref in refs)
    adamw = made["$defs"]["optimizers.adamw"]
    assert adamw["properties"]["kind"] == {"const": "adamw"} and adamw["required"][0] == "kind" and not adamw["additionalProperties"]
    assert adamw["properties"]["weight_decay"]["description"] == "Decay per step." and adamw["properties"]["weight_decay"]["minimum"] == 0
    losses = made["$defs"]["Task"]["properties"]["loss"]["anyOf"]
    assert losses[0] == {"enum": ["cross_entropy", "focal"]} and {"$ref": "#/$defs/losses.focal"} in losses
    schedules = made["$defs"]["optimizers.adamw"]["properties"]["schedule"]["anyOf"]
    assert schedules[0] == {"enum": []}  # every schedule needs a setting, so none can stand as a bare name
    assert "extends" in made["properties"] and made["required"] == ["name", "model", "data", "phases"]
