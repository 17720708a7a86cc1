"""Averages of checkpoints: equal ones stay what they are, others follow the shares, and what has no average is refused with its reason."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_run import Trained

import jaxtune
from jaxtune.cli.main import main
from jaxtune.core.errors import ConfigError, NoCheckpointError
from jaxtune.models.hub import Checkpoint
from jaxtune.models.settings import NewModel
from jaxtune.soup import Ingredient, average, check, soup, split_name


@pytest.fixture(autouse=True)
def here(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained.folder)


@pytest.fixture(scope="module")
def exports(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, np.ndarray]]:
    """The tensors of the run's first and last checkpoint, as `export` writes them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(trained.folder)
        steps = Ingredient.open(str(trained.run)).store.steps()
        root = tmp_path_factory.mktemp("exports")
        found = {
            step: load_file(jaxtune.export_model(trained.run, root / str(step), step) / "model.safetensors")
            for step in (steps[0], steps[-1])
        }
    assert len(found) == 2
    return found


def test_an_average_of_equals_is_what_they_are(trained: Trained, exports: dict[int, dict[str, np.ndarray]], tmp_path: Path) -> None:
    step = min(exports)
    made = soup([f"runs/tiny@{step}"] * 3, tmp_path / "out", weights=[0.2, 0.3, 0.9])
    tensors = load_file(made.folder / "model.safetensors")
    assert tensors.keys() == exports[step].keys() and (made.averaged, made.equal) == (0, len(tensors))
    for name, value in tensors.items():
        np.testing.assert_array_equal(value, exports[step][name], err_msg=name)


@pytest.mark.parametrize(("weights", "share"), [(None, 0.5), ([1.0, 3.0], 0.25), ([1.0, 0.0], 1.0)])
def test_it_is_linear_in_the_shares(
    weights: list[float] | None, share: float, exports: dict[int, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    (a, first), (b, last) = exports.items()
    made = soup([f"runs/tiny@{a}", f"runs/tiny@{b}"], tmp_path / "out", weights=weights)
    tensors = load_file(made.folder / "model.safetensors")
    differing = [name for name in first if not np.array_equal(first[name], last[name])]
    assert 0 < len(differing) == made.averaged < len(tensors), "some trained, some did not"
    for name, value in tensors.items():
        if name in differing:
            np.testing.assert_allclose(
                value, share * first[name].astype(np.float64) + (1 - share) * last[name], rtol=1e-6, atol=1e-9, err_msg=name
            )
        else:
            assert value.tobytes() == first[name].tobytes(), name
    assert [one.weight for one in made.ingredients] == [share, 1 - share]


def test_the_folder_is_a_base_like_any_other(
    exports: dict[int, dict[str, np.ndarray]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = exports
    assert main(["soup", f"runs/tiny@{a}", f"runs/tiny@{b}", "-o", str(tmp_path / "out"), "--weights", "2,1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(one["step"], round(one["weight"], 6)) for one in told["ingredients"]] == [(a, 0.666667), (b, 0.333333)]
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json", "README.md"}
    assert f"| tiny@{a} | 0.6667 |" in (tmp_path / "out" / "README.md").read_text()
    assert list(json.loads((tmp_path / "out" / "config.json").read_text())["id2label"].values()) == ["market", "screen", "sport"]
    assert list(tmp_path.iterdir()) == [tmp_path / "out"], "nothing else is left behind"
    assert main(["soup", f"runs/tiny@{a}", f"runs/tiny@{b}", "-o", str(tmp_path / "out")]) == 2
    assert "exists and is not empty; nothing was written" in capsys.readouterr().err


def test_a_greedy_soup_is_no_worse_than_its_best_ingredient(exports: dict[int, dict[str, np.ndarray]], tmp_path: Path) -> None:
    names = [f"runs/tiny@{step}" for step in exports]
    alone = {step: jaxtune.evaluate("runs/tiny", "validation", step).metrics["f1"] for step in exports}
    best = max(alone, key=alone.__getitem__)
    made = soup([*names, f"runs/tiny@{best}"], tmp_path / "out", greedy=True)
    assert made.metric is not None and made.metric >= max(alone.values()) - 1e-6
    assert alone[made.ingredients[0].step] == max(alone.values()), "it begins with the best"
    assert sum(one.weight for one in made.ingredients) == pytest.approx(1.0) and len(made.ingredients) >= 2, (
        "an equal one makes nothing worse"
    )


# -- what is refused --------------------------------------------------------------------------------------------------------


def ingredient(meta: dict[str, Any], step: int = 1, **changes: Any) -> Ingredient:
    """The run's experiment, changed, with another checkpoint's word about itself."""
    real = Ingredient.open("runs/tiny")
    store: Any = SimpleNamespace(meta=lambda step: real.meta | meta)
    experiment = real.experiment.model_copy(update=changes)
    return replace(real, store=store, step=step, experiment=experiment)


def test_runs_that_do_not_fit_together_are_refused_all_at_once() -> None:
    check([ingredient({}), ingredient({}, 2, seed=9)])
    with pytest.raises(ConfigError) as caught:
        check([ingredient({}), ingredient({"base": "other"}, 2), ingredient({"names": ["a", "b"]}, 3)])
    base, names = caught.value.problems
    assert base == (
        "tiny@2 began with another base (model) than tiny@1 (model); averages of weights make sense only where all began with the same ones"
    )
    assert names == "tiny@3 has other class names (a, b) than tiny@1 (market, screen, sport)"


def test_new_models_have_a_common_start_only_with_config_and_seed() -> None:
    model = ingredient({}).experiment.model.model_copy(update={"base": NewModel(family="bert")})
    check([ingredient({"base": None}, model=model), ingredient({"base": None}, 2, model=model)])
    with pytest.raises(ConfigError, match=r"tiny@2 began with another base \(new bert, seed 9\) than tiny@1 \(new bert, seed 3\)"):
        check([ingredient({"base": None}, model=model), ingredient({"base": None}, 2, model=model, seed=9)])


@pytest.mark.parametrize(
    ("runs", "settings", "told"),
    [
        (["runs/tiny"], {}, "an average needs two checkpoints or more, found 1"),
        (["runs/tiny"] * 2, {"weights": [1.0]}, "weights: found 1 for 2 checkpoints; give one for each"),
        (["runs/tiny"] * 2, {"weights": [1.0, -1.0]}, "weights: found 1, -1; expected numbers from 0 up, not all 0"),
        (["runs/tiny"] * 2, {"weights": [0.0, 0.0]}, "not all 0"),
        (["runs/tiny"] * 2, {"weights": [1.0, 1.0], "greedy": True}, "a greedy soup weighs what it takes equally"),
        (["runs/tiny", "runs/nothing"], {}, "runs/nothing: there is no such run"),
    ],
)
def test_what_is_no_average(runs: list[str], settings: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=told):
        soup(runs, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NoCheckpointError, match="has no checkpoint 99999"):
        soup(["runs/tiny", "runs/tiny@99999"], tmp_path / "out")


def test_weights_that_are_no_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["soup", "runs/tiny", "runs/tiny", "-o", str(tmp_path / "out"), "--weights", "half"]) == 2
    assert 'found "half"; expected numbers with commas between' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("runs/a", ("runs/a", "best")),
        ("runs/a@120", ("runs/a", 120)),
        ("runs/a@latest", ("runs/a", "latest")),
        ("me@work/a", ("me@work/a", "best")),
    ],
)
def test_names(name: str, parts: tuple[str, Any]) -> None:
    assert split_name(name) == parts


def model_folder(path: Path, tensors: dict[str, np.ndarray]) -> Checkpoint:
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "any"}')
    save_file(tensors, path / "model.safetensors")
    return Checkpoint.open(path)


def test_models_that_are_built_differently(tmp_path: Path) -> None:
    a = model_folder(tmp_path / "a", {"x": np.zeros((2, 3)), "y": np.zeros(2)})
    b = model_folder(tmp_path / "b", {"x": np.zeros((2, 4)), "z": np.zeros(2)})
    with pytest.raises(ConfigError) as caught:
        average([a, b], [0.5, 0.5])
    assert caught.value.problems == (
        "the models are built differently and have no average", "tensor x: [2, 3] in a, [2, 4] in b", "tensor y: [2] in a, absent in b", "tensor z: absent in a, [2] in b",
    )  # fmt: skip


def test_statistics_and_counters_have_no_average(tmp_path: Path) -> None:
    def model(name: str, value: float) -> Checkpoint:
        full = {
            "w": np.full(2, value, np.float32),
            "bn.running_mean": np.full(2, value, np.float32),
            "bn.num_batches_tracked": np.array(int(value)),
        }
        return model_folder(tmp_path / name, full)

    a = model("a", 1)
    assert average([a, a], [0.5, 0.5])[1] == 0
    with pytest.raises(ConfigError) as caught:
        average([a, model("b", 2)], [0.5, 0.5])
    assert [problem.split()[1] for problem in caught.value.problems] == ["bn.num_batches_tracked", "bn.running_mean"]
