"""Runs with adapters and quantized bases: what trains, what a checkpoint holds, what is handed back, and what is refused before step 1."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny
import tiny_run
from safetensors.numpy import load_file

import jaxtune
from jaxtune.api import load_model
from jaxtune.checkpoint.store import Store
from jaxtune.core.errors import ConfigError
from jaxtune.experiment import Experiment
from jaxtune.prepare import prepare
from jaxtune.run import export_run
from jaxtune.session import Session
from jaxtune.training.loop import Progress
from jaxtune.training.stage import Stage
from jaxtune.training.state import to_arrays

LORA = {"kind": "lora", "rank": 4}


def settings(train: list[str], adapter: Any, **model: Any) -> dict[str, Any]:
    return {
        "name": "tiny",
        "model": {"base": "model", "dtype": "float32", "dropout": "none", "adapter": adapter, **model},
        "task": {"kind": "text_classification", "metrics": ["accuracy"]},
        "data": {
            "source": {"kind": "text_folder", "path": "texts"},
            "split": {"kind": "stratified", "validation": 0.2, "test": 0.2},
            "max_tokens": 12, "widths": [12], "batch_size": 8,
        },
        "phases": [{"train": train, "steps": 8, "optimizer": {"kind": "adamw", "weight_decay": 0.0, "schedule": {"kind": "constant", "rate": 0.01}}}],
        "evaluation": {"every_steps": 4},
    }  # fmt: skip


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny_run.write_model(tmp_path / "model")
    tiny_run.write_corpus(tmp_path / "texts", each=20)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def session_of(values: dict[str, Any]) -> Session:
    experiment = Experiment.model_validate(values)
    session = Session.open(prepare(experiment), experiment.mesh.build(jax.devices()[:1]))
    session.check()
    return session


def started(session: Session) -> Stage:
    return session.start_phase(0, *session.load_base(), None)


def batch_of(session: Session) -> dict[str, jax.Array]:
    with session.feed("train", session.plan(0), 0, 1, training=True) as feed:
        return next(feed).arrays


def step(session: Session, stage: Stage) -> Any:
    """One step that gives nothing away."""
    with session.placement.active():
        return jax.jit(stage.step.function)(stage.state, batch_of(session), stage.controls(0, 1.0))


def test_the_adapter_alone_trains_and_is_saved(home: Path) -> None:
    session = session_of(settings(["*.lora_*", "head.*"], LORA))
    stage = started(session)
    before = tiny.host(stage.state)
    after, _ = step(session, stage)
    moved = {key for key, value in after.params.items() if not np.array_equal(value, before.params[key])}
    assert moved == {key for key in before.params if key.endswith("lora_b") or key.startswith("head.")}  # A moves once B is not zero
    assert stage.state.trainable.keys() == {key for key in before.params if ".lora_" in key or key.startswith("head.")}
    held = to_arrays(stage.state, session.touched(0))
    assert held["params"].keys() == stage.state.trainable.keys()
    moments = [
        str(path) for path, leaf in jax.tree_util.tree_leaves_with_path(stage.state.opt_state) if leaf.ndim and "kernel" in str(path)
    ]
    assert len(moments) == 2 and all("head.out.kernel" in path for path in moments)


def test_the_frozen_kernels_cost_no_gradient(home: Path) -> None:
    def flops(train: list[str], adapter: Any) -> float:
        session = session_of(settings(train, adapter))
        return session.compile(started(session), 0).flops

    full, frozen, lora = flops(["layers.*"], None), flops(["layers.0.*.bias"], None), flops(["*.lora_*"], {**LORA, "rank": 1})
    assert frozen < 0.72 * full  # two products of three
    assert lora < 0.8 * full and lora < 1.25 * frozen


def test_layers_below_the_first_adapter_have_no_backward_pass(home: Path) -> None:
    top = session_of(settings(["*.lora_*"], {**LORA, "targets": ["layers.2.*"]}))
    every = session_of(settings(["*.lora_*"], LORA))
    stage = started(top)
    assert {key.split(".")[1] for key in stage.blueprint.params if key.startswith("layers.")} == {"0-1", "2-2"}
    assert top.compile(stage, 0).flops < 0.7 * every.compile(started(every), 0).flops


def test_dropout_of_the_adapter_is_a_scalar_of_the_step(home: Path) -> None:
    session = session_of(settings(["*.lora_*"], {**LORA, "dropout": 0.3}))
    stage, plain = started(session), started(session_of(settings(["*.lora_*"], LORA)))
    random = np.random.default_rng(0)
    for it in (stage, plain):
        for key, value in it.state.trainable.items():
            it.state.trainable[key] = jax.device_put(random.standard_normal(value.shape).astype(np.float32) * 0.1, value.sharding)
        random = np.random.default_rng(0)
    losses = [float(step(session, it)[1]["loss"].total) for it in (stage, plain)]
    assert abs(losses[0] - losses[1]) > 1e-4
    assert stage.controls(0, 1.0)["dropout"]["adapter"] == np.float32(0.3)
    other = session_of(settings(["*.lora_*"], {**LORA, "dropout": 0.1}))
    assert other.program_key(0) == session.program_key(0)


def test_a_run_from_the_base_to_both_exports(home: Path) -> None:
    result = jaxtune.run(
        Experiment.model_validate(settings(["*.lora_*", "head.*"], {**LORA, "targets": ["layers.{1-2}.*"], "dropout": 0.1}))
    )
    folder = result.export
    assert {"config.json", "model.safetensors", "adapter"} <= {path.name for path in folder.iterdir()}
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"], config["task_type"]) == (4, 32, 0.1, "SEQ_CLS")
    assert config["modules_to_save"] == ["classifier"]
    tensors = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert tensors["base_model.model.bert.encoder.layer.1.attention.self.query.lora_A.weight"].shape == (4, 32)
    assert not [name for name in tensors if ".layer.0." in name] and "base_model.model.classifier.weight" in tensors
    # the merged folder, and the adapter on the base, compute what the run computed
    loaded = load_model(result.folder)
    wanted = logits_of(loaded.session, loaded.params, loaded.variables)
    for model in ({"base": str(folder), "adapter": None}, {"adapter": {"kind": "peft", "path": str(folder / "adapter")}}):
        again = settings(["head.*"], None)
        again["model"] |= model
        session = session_of(again)
        np.testing.assert_allclose(logits_of(session, *session.load_base()), wanted, atol=1e-5)


def logits_of(session: Any, params: Any, variables: Any) -> np.ndarray:
    batch = {"tokens": np.arange(4, 28, dtype=np.int32).reshape(2, 12), "segment_ids": np.ones((2, 12), np.int32)}
    module: Any = session.blueprint.build(jax.device_get(params), jax.device_get(variables))
    return np.asarray(jax.jit(lambda: module.head(module(batch)))())


def test_resumed_with_the_same_numbers(home: Path) -> None:
    values = settings(["*.lora_*"], LORA)
    session = session_of(values)
    stage = started(session)
    stage.state, _ = step(session, stage)
    with Store(home / "checkpoints") as store:
        session.save(store, stage.state, Progress(step=1, phase_step=1), None, wait=True)
        again = session_of(values)
        back, _, _ = again.resume(store)
        tiny.trees_equal(tiny.host(back.state), tiny.host(stage.state))
        _, params, _ = again.restore_params(store, 1)
        tiny.equal({key: params[key] for key in stage.state.trainable}, tiny.host(stage.state.trainable))


# -- quantized --------------------------------------------------------------------------------------------------------------


def test_a_quantized_base_trains_its_adapter(home: Path) -> None:
    session = session_of(settings(["*.lora_*", "head.*"], {**LORA, "export": "peft"}, quantize="int8"))
    stage = started(session)
    stage.state, _ = step(session, stage)
    with Store(home / "checkpoints") as store:
        session.save(store, stage.state, Progress(step=1, phase_step=1), None, wait=True)
        assert not [name for name in store.arrays(1) if ".kernel." in name]
        _, params, variables = session.restore_params(store, 1)
    tiny.equal(tiny.host(params), tiny.host(stage.state.params))
    assert params["layers.0-2.attn.q.kernel.codes"].dtype == np.int8
    export_run(session, home / "adapter", params | variables, {}, 0)
    names = {path.name for path in (home / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= names and "model.safetensors" not in names
    export_run(session, home / "whole", params | variables, {}, 0, whole=True)
    merged, base = load_file(home / "whole" / "model.safetensors"), load_file(home / "model" / "model.safetensors")
    name = "bert.encoder.layer.0.attention.self.query.weight"
    delta = 8.0 * (np.asarray(params["layers.0-2.attn.q.lora_a"][0]) @ np.asarray(params["layers.0-2.attn.q.lora_b"][0])).T
    assert np.abs(delta).max() > 0
    np.testing.assert_allclose(merged[name], base[name] + delta, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("train", [["*"], ["layers.*"], ["*.kernel"], ["*.codes"]])
def test_a_quantized_kernel_cannot_train(home: Path, train: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        session_of(settings(train, LORA, quantize="int8"))
    assert "picks layers.0." in str(caught.value) and "which model.quantize: int8 keeps frozen; train an adapter" in str(caught.value)
    session_of(settings(["*", "!*.kernel*"], {**LORA, "export": "merged"}, quantize="int8"))


# -- refusals ---------------------------------------------------------------------------------------------------------------


def test_an_adapter_that_nothing_trains_is_refused(home: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.adapter: no phase trains it \(its first parameter: layers.0.attn.k.lora_a\)"):
        session_of(settings(["head.*"], LORA))


def test_kernels_trained_under_an_adapter_have_no_place_in_peft(home: Path) -> None:
    with pytest.raises(ConfigError, match=r"layers.0.attn.k.bias: peft's format has no place for a trained bias"):
        session_of(settings(["*"], LORA))
    session_of(settings(["*"], {**LORA, "export": "merged"}))


def test_a_new_model_has_nothing_to_quantize(home: Path) -> None:
    values = settings(["*.lora_*"], LORA, quantize="nf4")
    values["model"]["base"] = {"family": "bert", "config": {}}
    with pytest.raises(ConfigError, match=r"model.quantize: nf4 keeps a checkpoint's kernels frozen, but this model is new"):
        Experiment.model_validate(values)
