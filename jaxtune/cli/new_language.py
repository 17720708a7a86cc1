"""The parts of an experiment that `jaxtune new` writes for a language model: LoRA on a small chat model, every number with its reason."""

from __future__ import annotations

import math
from pathlib import Path

from jaxtune.cli.forms import Form
from jaxtune.cli.lines import flow, line, source_line, split_lines
from jaxtune.cli.look import Look
from jaxtune.config.write import scalar

BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
HERE = Path(".cache/models/SmolLM2-135M-Instruct")  # where scripts/get_smollm2.sh puts it
TOKENS_PER_WORD = 1.5  # English in a vocabulary of a language model; `check` measures it
TEMPLATE_TOKENS = 40  # of a system message that many templates write by themselves
LONGEST = 2048
LONGEST_ANSWER = 256
BATCH = 8
PEAKS = {"causal_lm": "2.0e-4", "preference": "5.0e-5"}
LEARNED = {
    "messages": "conversations, by the base's chat template; the assistant's turns are learned",
    "completion": "learned; the prompt is read only",
    "text": "every token is learned",
    "chosen": "the better answer; its probability is raised over the other's",
}


def described(seen: Look, form: Form) -> str:
    named = [f'"{name}"' for name in form.columns.values()]
    what = {"messages": "conversations in", "text": "plain text in", "prompt": "prompts and answers in"}[next(iter(form.columns))]
    return f"{seen.rows:,} rows: {what} {', '.join(named)}"


def parts(seen: Look, form: Form, base: str | None) -> list[str]:
    """Model, task, data, phases and what follows, with an empty line between."""
    return [*_model(base), "", *_task(form), "", *_data(seen, form), "", *_phases(seen, form)]


def _model(base: str | None) -> list[str]:
    chosen = base or (str(HERE) if HERE.is_dir() else BASE)
    return [
        "model:",
        line(f"  base: {scalar(chosen)}", "" if base else "small and quick; a hub id, a folder or package://name/folder"),
        line("  dtype: bfloat16", "of the computation; what trains is kept in float32"),
        line("  adapter: {kind: lora, rank: 16, alpha: 32}", "beside the frozen base; without it: train everything"),
    ]


def _task(form: Form) -> list[str]:
    columns = {**form.columns, **({"prompt": "request"} if form.more else {})}
    lines = ["task:", f"  kind: {form.task}"]
    lines += [line(f"  {name}: {scalar(column)}", LEARNED.get(name, "")) for name, column in columns.items()]
    if form.chat and "messages" not in columns:
        lines.append(line("  as_chat: true", "as turns of the base's chat template; leave it out where the base has none"))
    if form.task == "preference":
        lines.append(line("  loss: dpo", "or ipo, or orpo, which needs no reference"))
    return lines


def _data(seen: Look, form: Form) -> list[str]:
    lines = ["data:", source_line(seen)]
    if form.more:
        template = f"{{{form.columns['prompt']}}}\n\n{{{form.more}}}"
        lines += ["  transforms:", f"    - {{kind: compose, into: request, template: {flow(template)}}}"]
    lengths = sorted(form.lengths)
    middle, most = (lengths[int(share * (len(lengths) - 1))] for share in (0.5, 0.98))
    room = int(min(LONGEST, max(64, 64 * math.ceil((most * TOKENS_PER_WORD + TEMPLATE_TOKENS * form.chat) / 64))))
    over = ("drop", "an answer that is cut does not learn to end") if "text" not in form.columns else ("cut", "or drop, or error")
    lines += split_lines(seen)
    lines.append(line(f"  max_tokens: {room}", f"half of the rows have up to {middle} words, 98 % up to {most}; check counts tokens"))
    lines.append(line(f"  over_length: {over[0]}", over[1]))
    if form.task == "causal_lm":
        lines.append(line("  # packing: best_fit", "several examples in a row; batch_size then counts rows"))
    return [*lines, line(f"  batch_size: {BATCH}", "examples per optimizer step, over all devices")]


def _phases(seen: Look, form: Form) -> list[str]:
    steps = max(1, math.ceil(0.8 * seen.rows / BATCH))
    every = max(5, min(200, steps // 2))
    epochs = 1 if form.task == "preference" or seen.rows >= 20_000 else 3 if seen.rows < 2000 else 2
    lines = [
        "phases:",
        line('  - train: ["*.lora_*"]', 'the adapter alone; without model.adapter: ["*"], at a tenth of the rate'),
        f"    epochs: {epochs}",
        f"    optimizer: {{kind: adamw, schedule: {{kind: cosine, peak: {PEAKS[form.task]}, warmup: 0.1}}}}",
        line("    stopping: [{kind: early_stopping, patience: 4}]", "evaluations without a better validation result"),
        "",
        "evaluation:",
        line(f"  every_steps: {every}", f"an epoch is about {steps} steps"),
    ]
    if form.answers:
        new = min(LONGEST_ANSWER, 8 * math.ceil((form.answers * TOKENS_PER_WORD + 4) / 8))
        answers = f"  answers: {{rows: 16, generation: {{max_new_tokens: {new}}}}}"
        lines.append(line(answers, "what it writes on validation rows stands in the report"))
    return [*lines, line(f"checkpoint: {{every_steps: {2 * every}}}", "the best one is kept as well, whenever it happens")]
