"""The config package against the real experiment: hints that lead somewhere, a schema that holds together, kinds that all load."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jaxtune.config.describe import find, tables
from jaxtune.config.editor import schema
from jaxtune.config.hints import ALIASES, _ends
from jaxtune.config.read import read
from jaxtune.config.schema import field_place, kinds, settings
from jaxtune.config.words import describe, table_name
from jaxtune.config.write import to_yaml
from jaxtune.config.yaml12 import Key
from jaxtune.core.component import Component
from jaxtune.experiment import Experiment

CONFIGS = sorted(path for path in (Path(__file__).resolve().parents[2] / "configs").rglob("*.yaml") if path.parent.name != "search")


def every_path() -> set[Key]:
    """Paths as a person writes them, with every kind in its place."""
    found: set[Key] = set()

    def walk(cls: type[Component], key: Key, above: tuple[type, ...]) -> None:
        for name, field in cls.model_fields.items():
            here = (*key, name)
            found.add(here)
            place = field_place(field)
            while place.items:
                place = place.items
            inner = [*place.sections, *(made for choice in place.choices for made in kinds(choice).values())]
            for made in inner:
                if made not in above:
                    walk(made, here, (*above, made))

    walk(Experiment, (), (Experiment,))
    return found


def test_every_hint_leads_to_a_setting():
    paths = every_path()
    ends = {ending for endings in ALIASES.values() for ending in endings}
    idle = {ending for ending in ends if not any(_ends(path, ending) for path in paths)}
    lost = sorted(word for word, endings in ALIASES.items() if set(endings) <= idle)
    assert not lost and not idle, f"words without a setting: {lost}; endings without a setting: {sorted(idle)}"


def test_no_hint_hides_a_setting():
    top = set(Experiment.model_fields)
    assert not top & set(ALIASES)


def test_all_kinds_of_all_tables_load():
    for choice in tables(Experiment):
        assert list(kinds(choice)) == sorted(choice.table), table_name(choice)
        assert table_name(choice) != "kinds"


def test_every_setting_says_what_it_is():
    silent = [f"{cls.__name__}.{row.name}" for cls in every_class() for row in describe(cls) if not row.description]
    assert silent == []


def every_class() -> list[type[Component]]:
    found: list[type[Component]] = [Experiment]
    for _, field in settings(Experiment, None):
        found += field_place(field).sections
    for choice in tables(Experiment):
        found += kinds(choice).values()
    return list(dict.fromkeys(found))


def test_schema_is_json_and_whole():
    made = schema(Experiment)
    text = json.dumps(made)
    refs = {part.split('"')[0] for part in text.split('"$ref": "#/$defs/')[1:]}
    assert refs <= set(made["$defs"]) and '"x-table"' not in text


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_configs_round_trip(config: Path, tmp_path: Path):
    made = read(config, [], Experiment)
    (tmp_path / "again.yaml").write_text(to_yaml(made))
    assert read(tmp_path / "again.yaml", [], Experiment) == made


def test_describe_finds_the_usual_things():
    for thing in ("data", "phases.optimizer", "optimizers", "adamw", "batch_size", "losses", "early_stopping"):
        assert find(thing, Experiment).title == thing or "/" in find(thing, Experiment).title
