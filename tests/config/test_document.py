from __future__ import annotations

from pathlib import Path

import pytest

from jaxtune.config.document import MAX_BYTES, Document, load_document
from jaxtune.core.errors import ConfigError


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        target = folder / (name.replace("__", "/") + ".yaml")
        target.parent.mkdir(exist_ok=True)
        target.write_text(text)


def test_extends_merges_sections_and_replaces_the_rest(here: Path):
    base = "seed: 1\ndata: {path: a, size: [1, 2], deep: {x: 1, y: 2}}\nname: base\n"
    write(here, base=base, sub__x="extends: ../base.yaml\ndata:\n  size: [3]\n  deep: {y: 5}\nname: x\n")
    document = load_document("sub/x.yaml")
    assert document.data == {"seed": 1, "data": {"path": "a", "size": [3], "deep": {"x": 1, "y": 5}}, "name": "x"}
    assert document.file == "sub/x.yaml"
    places = {
        "seed": "base.yaml:1",
        "name": "sub/x.yaml:5",
        "data.path": "base.yaml:2",
        "data.size": "sub/x.yaml:3",
        "data.size.0": "sub/x.yaml:3",
        "data.deep.x": "base.yaml:2",
        "data.deep.y": "sub/x.yaml:4",
        "data.no": "sub/x.yaml:2",
    }
    assert {key: document.where(key) for key in places} == places
    assert document.where("model.base") == "sub/x.yaml"


def test_another_kind_starts_afresh(here: Path):
    write(
        here,
        base="o: {kind: adamw, rate: 1, schedule: {kind: cosine, peak: 1}}\n",
        x="extends: base.yaml\no: {kind: sgd, momentum: 1}\n",
        y="extends: base.yaml\no: {kind: adamw, rate: 2}\n",
    )
    assert load_document("x.yaml").data == {"o": {"kind": "sgd", "momentum": 1}}
    assert load_document("y.yaml").data == {"o": {"kind": "adamw", "rate": 2, "schedule": {"kind": "cosine", "peak": 1}}}


def test_extends_a_list_the_later_over_the_earlier(here: Path):
    write(here, a="x: 1\ny: 1\nz: 1\n", b="y: 2\nz: 2\n", x="extends: [a.yaml, b.yaml]\nz: 3\n")
    document = load_document("x.yaml")
    assert document.data == {"x": 1, "y": 2, "z": 3}
    assert [document.where(key) for key in "xyz"] == ["a.yaml:1", "b.yaml:1", "x.yaml:2"]


def test_a_diamond_is_no_circle_and_is_read_once(here: Path):
    levels = {f"level{i}": f"extends: [level{i + 1}.yaml, level{i + 1}.yaml]\n" for i in range(20)}
    write(here, root="x: 1\n", **levels, level20="extends: root.yaml\n")
    assert load_document("level0.yaml").data == {"x": 1}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"x": "extends: x.yaml\n"}, "x.yaml:1: extends goes round in a circle: x.yaml -> x.yaml"),
        (
            {"x": "a: 1\nextends: b.yaml\n", "b": "extends: c.yaml\n", "c": "extends: ./b.yaml\n"},
            "c.yaml:1: extends goes round in a circle: b.yaml -> c.yaml -> b.yaml",
        ),
        ({"x": "extends: bas.yaml\n", "base": "a: 1\n"}, 'x.yaml:1: extends: no file bas.yaml; did you mean "base.yaml"?'),
        ({"x": "extends: no/base.yaml\n"}, "x.yaml:1: extends: no file no/base.yaml: the folder no does not exist"),
        ({"x": "extends: {a: 1}\n"}, "x.yaml:1: extends must name a file or a list of files, relative to ./"),
        ({"x": "extends: []\n"}, "x.yaml:1: extends must name a file or a list of files, relative to ./"),
        ({"x": "extends: base.yaml\n", "base": "a: 1\na: 2\n"}, 'base.yaml:2: "a" is given twice (first at line 1)'),
        ({"x": ""}, "x.yaml: is empty; expected an experiment (jaxtune new --data FILE writes one)"),
        ({"x": "# only a comment\n"}, "x.yaml: is empty; expected an experiment (jaxtune new --data FILE writes one)"),
        ({"x": "- a\n"}, "x.yaml:1: expected settings as `name: value`, found a list"),
        ({"x": "hello\n"}, "x.yaml:1: expected settings as `name: value`, found a single value"),
        ({"experiment": "a: 1\n"}, "no file x.yaml"),
        ({"xx": "a: 1\n"}, 'no file x.yaml; did you mean "xx.yaml"?'),
        ({"x": "a: " + "b" * MAX_BYTES}, "x.yaml: is larger than 1024 KiB; expected an experiment, not data"),
    ],
)
def test_refused(here: Path, files: dict[str, str], message: str):
    write(here, **files)
    with pytest.raises(ConfigError) as caught:
        load_document("x.yaml")
    assert str(caught.value) == message


def test_a_folder_and_other_encodings_are_refused(here: Path):
    (here / "configs").mkdir()
    (here / "configs" / "a.yaml").write_text("a: 1")
    with pytest.raises(ConfigError, match=r"configs is a folder; expected a YAML file \(in it: a\.yaml\)"):
        load_document("configs")
    (here / "x.yaml").write_bytes(b"a: 1\nb: caf\xe9\n")
    with pytest.raises(ConfigError, match=r"x\.yaml:2: is not UTF-8 text; save it as UTF-8"):
        load_document("x.yaml")
    (here / "y.yaml").write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    assert load_document("y.yaml").data == {"a": 1, "b": 2}


def test_home_is_expanded(here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(here))
    write(here, x="a: 1\n")
    assert isinstance(load_document("~/x.yaml"), Document)
