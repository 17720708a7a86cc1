"""Broken experiments, one thing wrong each, and the exact words about them: `broken.txt` beside this file is the list.

    python tests/cli/broken_cases.py    writes docs/errors.md from the list

The messages are those of a machine with 8 devices and without a network, in a folder that holds what `lay_out` puts there.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import tiny_run  # noqa: E402  the folder must be on the path first

PAGE = HERE.parents[1] / "docs" / "errors.md"
DEVICES = 8
GOOD = """\
name: reviews
model: {base: model}
task: {kind: text_classification, metrics: [accuracy, f1], best: f1}
data:
  source: {kind: text_folder, path: texts}
  split: {kind: stratified, by: label, validation: 0.2, test: 0.2}
  max_tokens: 20
  batch_size: 16
phases:
  - train: ["head.*"]
    epochs: 1
    optimizer: {kind: adamw, schedule: {kind: constant, rate: 1.0e-3}}
"""
INTRODUCTION = """\
# What jaxtune says when something is wrong

Made by `python tests/cli/broken_cases.py` from `tests/cli/broken.txt`; `tests/cli/test_broken.py` shows that every command below says
exactly this, exits with this code, and leaves no run folder behind. All start from this experiment, `x.yaml`, in the folder `/here` of a
machine with 8 devices and without a network:

```yaml
{good}```

All problems of a file are told at once; here every case has one thing wrong. A slip in the YAML, an unknown setting or kind takes less than
2 seconds of one core, what needs the model's or the data's files less than 4 (`benchmarks/broken_experiments.py` measures all of them).
"""


@dataclass(frozen=True)
class Case:
    """One broken experiment.

    Attributes:
        title: what is wrong.
        changes: (old, new) texts of the good experiment.
        words: what follows `jaxtune train x.yaml` on the command line.
        exit_code: of the command.
        message: what stderr holds after "error: ".
    """

    title: str
    changes: tuple[tuple[str, str], ...]
    words: tuple[str, ...]
    exit_code: int
    message: str

    @property
    def text(self) -> str:
        """The experiment's file."""
        text = GOOD
        for old, new in self.changes:
            assert old in text, f"{self.title}: {old!r} is not in the experiment"
            text = text.replace(old, new, 1)
        return text

    @property
    def stderr(self) -> str:
        """All that the command prints."""
        first, *rest = self.message.split("\n")
        lines = [f"error: {first}"] if not rest else [f"error: {len(rest) + 1} problems", *(f"  {line}" for line in (first, *rest))]
        return "\n".join(lines) + "\n"

    @property
    def limit_seconds(self) -> float:
        """Processor time until the answer: less where the file itself tells."""
        return 2.0 if self.message.startswith(("x.yaml", "command line")) else 4.0

    def said(self, stderr: str, folder: Path) -> str:
        """What was printed, with the folder called /here."""
        return stderr.replace(str(folder), "/here")


def cases() -> Iterator[Case]:
    """The list, in order. A block is a title (#), changes (- and +), words ($), the exit code (!) and the message (=, a line each)."""
    for block in (HERE / "broken.txt").read_text(encoding="utf-8").split("\n\n")[1:]:
        lines = [(line[0], line[2:]) for line in block.strip("\n").split("\n")]
        marked = {mark: [text.replace("\\n", "\n").replace("(nothing)", "") for found, text in lines if found == mark] for mark in "#-+$!="}
        code = int(marked["!"][0]) if marked["!"] else 2
        changes = tuple(zip(marked["-"], marked["+"], strict=True))
        words = tuple(word for line in marked["$"] for word in line.split())
        yield Case(marked["#"][0], changes, words, code, "\n".join(marked["="]))


def lay_out(folder: Path) -> None:
    """What the experiments name: one good model folder and corpus, and damaged ones."""
    tiny_run.write_model(folder / "model")
    tiny_run.write_corpus(folder / "texts", each=15)
    (folder / "model-without-tokenizer").mkdir()
    for file in ("config.json", "model.safetensors"):
        shutil.copy(folder / "model" / file, folder / "model-without-tokenizer")
    (folder / "licensed").mkdir()
    shutil.copytree(folder / "model", folder / "licensed", dirs_exist_ok=True)
    (folder / "licensed" / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# A model\n")
    weights(folder, "missing-tensor", lambda tensors: tensors.pop("bert.encoder.layer.1.output.dense.weight"))
    weights(folder, "extra-tensor", lambda tensors: tensors.update({"bert.adapter.weight": tensors["classifier.weight"]}))
    weights(folder, "cut-tensor", lambda tensors: tensors.update({"bert.pooler.dense.bias": tensors["bert.pooler.dense.bias"][:16].copy()}))
    configs(folder, "odd-config", use_moe_layers=True)
    configs(folder, "unknown-family", model_type="berd")
    configs(folder, "small-vocabulary", vocab_size=100)
    shutil.copytree(folder / "model", folder / "pickled")
    (folder / "pickled" / "model.safetensors").unlink()
    (folder / "pickled" / "pytorch_model.bin").write_bytes(b"\x80\x02")
    shutil.copytree(folder / "model", folder / "torn")
    (folder / "torn" / "model.safetensors").write_bytes((folder / "model" / "model.safetensors").read_bytes()[:5000])
    shutil.copytree(folder / "model", folder / "escaping")
    (folder / "escaping" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../model/model.safetensors"}}))
    tiny_run.write_model(folder / "vit", "vit")
    shutil.copytree(folder / "texts", folder / "empty-text")
    (folder / "empty-text" / "sport" / "03.txt").write_text("  \n")
    (folder / "one-label" / "sport").mkdir(parents=True)
    for number in range(30):
        (folder / "one-label" / "sport" / f"{number}.txt").write_text(f"team {number}")
    (folder / "loose").mkdir()
    (folder / "loose" / "a.txt").write_text("team")
    rows = [{"text": f"{'team' if n % 2 else 'film'} {n}", "label": "sport" if n % 2 else "screen", "set": "dev"} for n in range(30)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "torn.jsonl").write_text('{"text": "team", "label": "sport"}\n{"text": "film", "lab\n')
    (folder / "parts.py").write_text("class Loss:\n    pass\n")


def weights(folder: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    """A copy of the model whose tensors are changed."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(folder / "model", folder / name)
    tensors = load_file(folder / name / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / name / "model.safetensors", metadata={"format": "pt"})


def configs(folder: Path, name: str, **keys: object) -> None:
    """A copy of the model whose config.json says something else."""
    shutil.copytree(folder / "model", folder / name)
    path = folder / name / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def page(of: Iterable[Case]) -> str:
    """docs/errors.md."""
    parts = [INTRODUCTION.format(good=GOOD)]
    for case in of:
        changes = "\n".join(diff(old, new) for old, new in case.changes)
        command = f"$ jaxtune train x.yaml {' '.join(case.words)}".rstrip()
        shown = f"```diff\n{changes}\n```\n\n" if case.changes else ""
        parts.append(f"## {case.title}\n\n{shown}```text\n{command}\n{case.stderr}```\n\nExit code {case.exit_code}.\n")
    return "\n".join(parts)


def diff(old: str, new: str) -> str:
    """The lines of the good experiment that a change touches, before and after."""
    start = GOOD.index(old)
    first, last = GOOD.rfind("\n", 0, start) + 1, GOOD.find("\n", start + len(old.rstrip("\n")))
    before = GOOD[first:last]
    after = before.replace(old.rstrip("\n"), new.rstrip("\n"), 1)
    return "\n".join([f"- {line}" for line in before.split("\n")] + [f"+ {line}" for line in after.split("\n") if line])


if __name__ == "__main__":
    PAGE.write_text(page(cases()), encoding="utf-8")
    print(PAGE)
