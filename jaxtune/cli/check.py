"""`jaxtune check X.yaml`: everything short of step 1, and a report of what would be trained on what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxtune.cli.output import Output
from jaxtune.cli.watching import freezing_table
from jaxtune.core.component import OneOf
from jaxtune.experiment import load_experiment
from jaxtune.models import ADAPTERS
from jaxtune.models.adapters import PARTS
from jaxtune.parallel import hosts
from jaxtune.prepare import Prepared, prepare
from jaxtune.reference import check_read
from jaxtune.session import Session
from jaxtune.training.parameters import choose, weights_in


def run(output: Output, experiment: Path, overrides: list[str]) -> dict[str, Any]:
    loaded = load_experiment(experiment, overrides)
    hosts.start()
    prepared = prepare(loaded)
    session = Session.open(prepared, loaded.mesh.build())
    session.check()
    check_read(session)
    model = tell_model(output, prepared, session)
    data = tell_data(output, prepared)
    phases = []
    for number, phase in enumerate(loaded.phases):
        plan = session.plan(number)
        steps = session.steps(number)
        table = choose(session.blueprint.params, phase.train).table
        output.say()
        output.say(
            f"phase {number + 1}: {steps} steps ({steps / plan.steps():.1f} epochs), {plan.real_token_share():.1%} of each batch is data"
        )
        for line in freezing_table(table):
            output.say(line)
        phases.append({"steps": steps, "steps_per_epoch": plan.steps(), "real_token_share": plan.real_token_share()})
    output.say()
    output.say(f"{experiment}: all of it fits; train with: jaxtune train {experiment}")
    return {"experiment": str(experiment), "model": model, "data": data, "phases": phases}


def tell_model(output: Output, prepared: Prepared, session: Session) -> dict[str, Any]:
    """The base, its licence, what is added to it, and what starts fresh."""
    base, model = prepared.base, prepared.experiment.model
    counts = {key: weights_in(key, shape) for key, shape in session.blueprint.params.items()}
    added = {name for name in session.fresh if name.rpartition(".")[2] in PARTS}
    total = sum(counts.values())
    kept = "" if model.quantize == "none" else f", its dense layers kept in {model.quantize}"
    of_adapter = sum(count for key, count in counts.items() if key.rpartition(".")[2] in PARTS)
    fresh = sorted({name.split(".")[0] for name in session.fresh - added})
    output.say(f"model   {base.reference} ({base.family.model_type}, {total - of_adapter:,} parameters{kept})")
    if model.adapter is not None:
        layers = len({name.rpartition(".")[0] for name in added})
        output.say(f"adapter {OneOf(ADAPTERS).kind(model.adapter)}, {of_adapter:,} parameters beside {layers} dense layers")
    output.say(f"licence {base.licence or 'none is named in the model folder'}")
    output.say(f"fresh   {', '.join(fresh) or 'nothing: every parameter comes from the checkpoint'}")
    if session.loading.ignored:
        output.say(f"unused  {len(session.loading.ignored)} tensors of the checkpoint: {', '.join(session.loading.ignored[:4])}")
    return {
        "base": base.reference,
        "model_type": base.family.model_type,
        "parameters": total - of_adapter,
        "licence": base.licence,
        "fresh": fresh,
    } | ({"adapter": of_adapter} if model.adapter is not None else {})


def tell_data(output: Output, prepared: Prepared) -> dict[str, Any]:
    """Splits, labels, lengths, widths."""
    facts = prepared.facts
    output.say()
    for line in facts["split"].lines():
        output.say(line)
    if facts["dropped_by_transforms"]:
        output.say(f"{facts['dropped_by_transforms']} rows left out by transforms")
    if facts["labels"] is not None:
        output.say()
        head, *rows = facts["labels"].rows()
        output.table(rows, head=head)
    encoding = facts["encoding"]
    if "lengths" in encoding:
        output.say()
        for line in encoding["lengths"].lines():
            output.say(line)
        widths, over = ", ".join(map(str, facts["widths"])), prepared.experiment.data.over_length
        if prepared.experiment.data.packing == "none":
            output.say(f"batches are padded to {widths} tokens; texts that are longer: {over}")
        else:
            output.say(f"texts are packed into rows of {facts['packed_widths'][0]} tokens; those longer than max_tokens: {over}")
    learned: dict[str, Any] = {}
    if "targets" in encoding:
        for line in encoding["targets"].lines():
            output.say(line)
        if encoding["template"] is not None:
            output.say(f"chat template: the checkpoint's own, fingerprint {encoding['template'][:12]}")
        learned = {"trained_share": encoding["targets"].trained_share, "template": encoding["template"]}
    labels = None if facts["labels"] is None else facts["labels"].as_json()
    return {
        "rows": facts["rows"],
        "labels": labels,
        "widths": facts["packed_widths"] or facts["widths"],
        "duplicates": facts["split"].copies,
        **learned,
    }
