"""Features are what the head's last product reads: held against the logits that the task itself computes from them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxtune.experiment import load_experiment
from jaxtune.layers.stack import StackOptions
from jaxtune.models.load import maker, open_base
from jaxtune.prepare import prepare
from jaxtune.selection.candidates import Candidate, Filters
from jaxtune.selection.choose import Comparison, Effort, Rows
from jaxtune.selection.embeddings import Embeddings, HeadInputs, embed
from jaxtune.session import Session

WIDTH = 12


def batch_for(family: Any) -> dict[str, jax.Array]:
    random = np.random.default_rng(0)
    if family.domain == "image":
        height, width, channels = family.image_shape
        return {"image": jnp.asarray(random.normal(size=(4, height or 32, width or 32, channels)), jnp.float32)}
    tokens = random.integers(5, family.vocabulary, (4, WIDTH)).astype(np.int32)
    return {"tokens": jnp.asarray(tokens), "segment_ids": jnp.ones((4, WIDTH), jnp.int32)}


@pytest.mark.parametrize("name", ["bert", "roberta", "electra", "distilbert", "vit", "deit", "deit_teacher", "resnet"])
def test_logits_are_one_product_away(name: str):
    family = open_base(str(tiny.REFERENCES / name)).family
    module: Any = maker(family, 3, seed=1, options=StackOptions(), dtype="float32")()
    batch = batch_for(family)
    task: Any = SimpleNamespace(prepare=lambda batch: batch)
    both = jax.jit(lambda batch: (HeadInputs(task, dense=True, pooler=True).predict(module, batch)["logits"], module.head(module(batch))))
    features, found = both(batch)
    products = [module.head.out] if name != "deit_teacher" else [module.head.out, module.head.distillation]
    parts = np.split(np.asarray(features), len(products), axis=1)
    wanted = np.mean([x @ np.asarray(p.kernel[...]) + np.asarray(p.bias[...]) for x, p in zip(parts, products, strict=True)], 0)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert features.dtype == jnp.float32


def test_what_starts_fresh_is_left_out():
    """Without the checkpoint's dense layer the head's input counts, without its pooler the first token."""
    task: Any = SimpleNamespace(prepare=lambda batch: batch)
    for name, inputs in (("roberta", HeadInputs(task, dense=False, pooler=True)), ("bert", HeadInputs(task, dense=True, pooler=False))):
        family = open_base(str(tiny.REFERENCES / name)).family
        module: Any = maker(family, 3, seed=1, options=StackOptions(), dtype="float32")()
        batch = batch_for(family)
        found = inputs.predict(module, batch)["logits"]
        np.testing.assert_allclose(found, module(batch).tokens[:, 0], atol=1e-6)


def opened(experiment: Path, *words: str) -> tuple[Session, np.ndarray]:
    prepared = prepare(load_experiment(experiment, list(words)))
    session = Session.open(prepared, tiny.one_device())
    return session, Rows.of_prepared(prepared, Effort(rows=30)).records


def features_of(session: Session, records: np.ndarray, cache: Path | None, fresh: bool = False) -> Embeddings:
    return embed(session, HeadInputs.of(session), records, *session.load_base(), fresh=fresh, cache=cache)


def test_a_pass_gives_what_the_model_gives_row_by_row(tiny_experiment: Path):
    session, records = opened(tiny_experiment)
    assert 20 <= len(records) <= 32
    shuffled = np.random.default_rng(0).permutation(records)
    found = features_of(session, shuffled, None)
    params, variables = session.load_base()
    module: Any = session.blueprint.build(params, variables)
    examples = session.prepared.splits["train"]
    assert set(found.readings) == {"head", "mean of tokens"}
    for record, features, mean in list(zip(shuffled, *found.readings.values(), strict=True))[:5]:
        tokens = jnp.asarray(examples.row(int(np.flatnonzero(examples.ids == record)[0]))["tokens"])[None]
        made = module({"tokens": tokens, "segment_ids": jnp.ones_like(tokens)})
        np.testing.assert_allclose(features, made.pooled[0], atol=1e-5)
        np.testing.assert_allclose(mean, made.tokens[0].mean(0), atol=1e-5)


def test_features_are_kept_by_everything_that_decides_them(tiny_experiment: Path, tmp_path: Path):
    cache = tmp_path / "embeddings"
    session, records = opened(tiny_experiment)
    first, again = (features_of(session, records, cache) for _ in range(2))
    assert (first.from_cache, again.from_cache) == (False, True) and again.seconds == 0 < first.seconds
    for reading, values in first.readings.items():
        np.testing.assert_array_equal(values, again.readings[reading])
    assert features_of(opened(tiny_experiment, "phases.0.epochs=1")[0], records, cache).from_cache  # decides nothing here
    others = [features_of(session, records[:-1], cache), features_of(session, records, cache, fresh=True)]
    others.append(features_of(opened(tiny_experiment, "model.dtype=bfloat16")[0], records, cache))
    others.append(features_of(opened(tiny_experiment, "data.max_tokens=12", "data.widths=auto")[0], records, cache))
    assert not any(each.from_cache for each in others)
    weights = Path("model/model.safetensors")
    raw = bytearray(weights.read_bytes())
    raw[-2] ^= 1
    weights.write_bytes(raw)
    assert not features_of(opened(tiny_experiment)[0], records, cache).from_cache


def test_random_weights_are_no_checkpoints(tiny_experiment: Path, tmp_path: Path):
    """`random:model` computes with other numbers than `model`, and with others again for another seed."""
    experiment = load_experiment(tiny_experiment)
    found = {}
    for name, candidate, seed in (
        ("model", Candidate("model"), 3),
        ("fresh", Candidate("model", True), 3),
        ("other", Candidate("model", True), 4),
    ):
        comparison = Comparison(
            experiment.model_copy(update={"seed": seed}), Filters(), Effort(rows=40, folds=2, repeats=1, steps=0), tmp_path / "e"
        )
        found[name] = comparison.assess(candidate)
        assert not found[name].from_cache
    logs = [each.score.logme for each in found.values()]
    assert len(set(logs)) == 3 and len({each.parameters for each in found.values()}) == 1
