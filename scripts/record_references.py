"""Record what `transformers` on PyTorch computes for tiny random checkpoints, as the truth of the parity tests.

jaxtune's tests compare against these files and so need neither PyTorch nor a network. Run this only to add a case
(`reference_cases.py`) or to move to a newer `transformers`, in an environment of its own:

    python3.11 -m venv torch-venv
    torch-venv/bin/pip install torch transformers safetensors pillow
    torch-venv/bin/python scripts/record_references.py [--only NAME ...] [--output tests/references]

Every tensor name is the one in the checkpoint file, never the one of the PyTorch module: transformers 5 renames some
families (ViT, DeiT) on the way in and out. Gradients get their file names by being saved as if they were weights,
through the same `save_pretrained`.
"""

import argparse
import copy
import datetime
import itertools
import json
import math
import platform
import tempfile
import zlib
from pathlib import Path

import numpy
import torch
import transformers
from record_language import record_language
from reference_cases import CASES, TEXTS, VOCABULARY, Case
from reference_language_cases import LANGUAGE_CASES
from safetensors.torch import load_file, save_file

BATCH = 3
LOSSES = {
    "single_label_classification": torch.nn.functional.cross_entropy,
    "multi_label_classification": torch.nn.functional.binary_cross_entropy_with_logits,
    "regression": lambda logits, labels: torch.nn.functional.mse_loss(logits.squeeze(-1), labels),
}
README = """\
# Reference values for the parity tests

Tiny random checkpoints (`config.json`, `model.safetensors`, as `save_pretrained` writes them) and what `transformers`
computes with them. Recorded on {date} by `scripts/record_references.py` with transformers {transformers}, torch
{torch}, Python {python}, on the CPU ({cpu}), float32, one thread, eager attention, seeds derived from the case names.
Nothing in this folder is written by hand.

`index.json` lists the cases: inputs, outputs, the loss, extra arguments of the forward pass, and `rounding`, the
greatest distance of each recorded quantity from the same computation in float64 (`grad`: over all gradients). A parity
tolerance below it cannot be met.

`reference.safetensors` of a case holds, in evaluation mode (no dropout, running batch statistics):
- inputs: `input_ids`, `attention_mask`, `token_type_ids`, `pixel_values` (NCHW), `labels`; a batch of 3, texts of
  lengths T, 9T/16 and T/4;
- `images` (uint8, NHWC) where `pixel_values` were made by the image processor whose `preprocessor_config.json` lies in
  the folder;
- outputs: `last_hidden_state` and `pooler_output` of the body, `logits` of the head (`cls_logits` and
  `distillation_logits` as well for DeiT with teacher);
- `loss`: the loss named in `index.json`, a mean over the batch. For a model without a classification head it is the sum
  over the outputs of output times `cotangent.<output>` (random, zero at padded positions), so that `jax.vjp` with these
  cotangents gives the gradients;
- `grad.<tensor name in model.safetensors>` for every parameter that the loss depends on;
- `position_ids` (RoBERTa) as derived from the padding; `interpolated_position_embeddings` (ViT on a larger image);
- `train.*` (ResNet): logits, loss and gradients with batch statistics, and `train.<name>` of the running statistics
  after that one batch.

A language model (loss `language`) has instead: `input_ids`, `attention_mask`, `position_ids` of texts padded on the right with
their `logits`; `loss`, the mean cross entropy of predicting token t from those before it with weights `token_weight`, and its
gradients; `prompt.*`, prompts padded on the left, with `prompt_logits` and `generated`, the 64 tokens that greedy `generate` adds. Its
`rounding` also says the least `margin` between the best token and the next in them.

Two things to know when comparing. The gradients of key biases (`key.bias`, `k_lin.bias`) are zero in exact arithmetic,
so what is recorded is rounding: compare absolutely. And PyTorch keeps the gradient of the padding row of an embedding
table at zero (`pad_token_id`; in RoBERTa that row of the position table too), which shows only in the cases
`*_left_padded`, where the head reads a padded position.

`tokenizer/` is a WordPiece tokenizer of 120 tokens; its `examples.json` is what it makes of a few texts and pairs.

| case | architecture | shows | KB |
|---|---|---|---|
{table}
"""
OUTPUTS = ("last_hidden_state", "pooler_output", "logits", "cls_logits", "distillation_logits")
Tensors = dict[str, torch.Tensor]


def build(case: Case) -> torch.nn.Module:
    """The model of a case, every tensor random: norms are not one, biases and padding rows not zero."""
    torch.manual_seed(zlib.crc32(case.name.encode()))
    architecture = getattr(transformers, case.architecture)
    config = architecture.config_class(**case.config, attn_implementation="eager")
    model = architecture(config, **case.build).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if case.keeps_position_table and "position_embeddings" in name:
                continue
            is_norm_scale = name.endswith("weight") and tensor.ndim == 1
            is_table = "embeddings" in name and not name.endswith("projection.weight")
            if tensor.ndim == 1 or is_table:
                tensor.copy_(0.2 * torch.randn_like(tensor) + float(is_norm_scale))
            elif name.endswith("classifier.1.weight"):  # ResNet has no initializer_range and starts with a weak head
                tensor.normal_(0.0, 0.15)
        for name, tensor in model.named_buffers():
            if name.endswith("running_mean"):
                tensor.normal_(0.0, 0.2)
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith("num_batches_tracked"):
                tensor.fill_(7)
    return model


def text_inputs(case: Case, config) -> Tensors:
    """Token ids of three lengths (the first row is full), padded on the right unless the case says left."""
    length = case.tokens
    lengths = (length, length * 9 // 16, length // 4)
    first_id = config.pad_token_id + 4
    ids = torch.full((BATCH, length), config.pad_token_id)
    mask = torch.zeros((BATCH, length), dtype=torch.long)
    types = torch.zeros((BATCH, length), dtype=torch.long)
    for row, real in enumerate(lengths):
        where = slice(length - real, length) if case.left_padded else slice(0, real)
        ids[row, where] = torch.randint(first_id, config.vocab_size, (real,))
        mask[row, where] = 1
        types[row, where] = torch.arange(real) * getattr(config, "type_vocab_size", 1) // real
    inputs = {"input_ids": ids, "attention_mask": mask}
    if getattr(config, "type_vocab_size", 1) > 1:
        inputs["token_type_ids"] = types
    return inputs


def image_inputs(case: Case, config, folder: Path) -> tuple[Tensors, Tensors]:
    """Pixels, and with an image processor (saved here too) the uint8 images [B, height, width, 3] that it was given."""
    if case.processor:
        name, settings = case.processor
        processor = getattr(transformers, name)(**settings)
        processor.save_pretrained(folder)
        coarse = torch.rand(BATCH, 3, 6, 10)
        smooth = torch.nn.functional.interpolate(coarse, size=(24, 40), mode="bilinear").movedim(1, -1)
        images = (255 * (0.8 * smooth + 0.2 * torch.rand(BATCH, 24, 40, 3))).to(torch.uint8)
        pixels = processor(list(images.numpy()), return_tensors="np")["pixel_values"]
        return {"pixel_values": torch.from_numpy(numpy.asarray(pixels, numpy.float32))}, {"images": images}
    size = case.pixels or getattr(config, "image_size", 32)
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return {"pixel_values": torch.randn(BATCH, config.num_channels, height, width)}, {}


def loss_kind(case: Case, config) -> str | None:
    """The loss rule of `transformers` for a model with a classification head; None for a model without one."""
    if "Classification" not in case.architecture:
        return None
    return config.problem_type or "single_label_classification"


def make_labels(kind: str, classes: int) -> torch.Tensor:
    if kind == "regression":
        return torch.randn(BATCH)
    if kind == "multi_label_classification":
        return torch.tensor([[(row + column) % 2 for column in range(classes)] for row in range(BATCH)]).float()
    return torch.arange(BATCH).flip(0) % classes


def file_tensors(model: torch.nn.Module) -> Tensors:
    """The tensors under the names that `save_pretrained` writes."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load_file(f"{folder}/model.safetensors")


def file_gradients(model: torch.nn.Module) -> Tensors:
    """The gradients under file names. NaN marks what has none (buffers, heads outside the loss): left out."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter, source in zip(twin.parameters(), model.parameters(), strict=True):
            parameter.copy_(source.grad if source.grad is not None else torch.full_like(parameter, math.nan))
        for buffer in twin.buffers():
            buffer.fill_(math.nan if buffer.is_floating_point() else 0)
    tensors = file_tensors(twin)
    return {name: value for name, value in tensors.items() if value.is_floating_point() and not value.isnan().any()}


def differentiate(model, case: Case, inputs: Tensors, labels, cotangents: Tensors) -> Tensors:
    """Outputs, loss and gradients of one batch. Without labels the loss is the sum of outputs times cotangents."""
    model.zero_grad()
    if labels is None:
        outputs = model.base_model(**inputs, **case.forward)
        loss = sum((outputs[name] * cotangent).sum() for name, cotangent in cotangents.items())
    else:
        outputs = model(**inputs, **case.forward)
        loss = LOSSES[loss_kind(case, model.config)](outputs.logits, labels)
    loss.backward()
    found = {name: outputs[name].detach() for name in OUTPUTS if name in outputs}
    gradients = {f"grad.{name}": value for name, value in file_gradients(model).items()}
    return {**found, "loss": loss.detach(), **gradients}


def rounding(model, case: Case, inputs: Tensors, labels, cotangents: Tensors, recorded: Tensors) -> dict[str, float]:
    """How far the recorded float32 numbers are from float64: the floor under any tolerance of a parity test."""

    def double(value):
        return value.double() if value is not None and value.is_floating_point() else value

    wide = differentiate(
        copy.deepcopy(model).double(),
        case,
        {name: double(value) for name, value in inputs.items()},
        double(labels),
        {name: double(value) for name, value in cotangents.items()},
    )
    difference = {name: (wide[name] - recorded[name]).abs().max().item() for name in wide}
    gradients = max(value for name, value in difference.items() if name.startswith("grad."))
    kept = {name: value for name, value in difference.items() if not name.startswith("grad.")}
    return {name: float(f"{value:.1e}") for name, value in {**kept, "grad": gradients}.items()}


def record(case: Case, root: Path) -> dict:
    """Write the folder of one case and return its row of the index."""
    folder = root / case.name
    model = build(case)
    config = model.config
    model.save_pretrained(folder)
    torch.manual_seed(zlib.crc32(case.name.encode()) + 1)
    is_text = "input_ids" in model.main_input_name
    inputs, extra = (text_inputs(case, config), {}) if is_text else image_inputs(case, config, folder)

    with torch.no_grad():
        base = model.base_model(**inputs, **case.forward)
    features = {name: base[name] for name in OUTPUTS if name in base and base[name] is not None}
    kind = loss_kind(case, config)
    labels = make_labels(kind, config.num_labels) if kind else None
    cotangents = {} if kind else {name: torch.randn_like(value) / value[0].numel() for name, value in features.items()}
    if "last_hidden_state" in cotangents and is_text:
        cotangents["last_hidden_state"] *= inputs["attention_mask"].unsqueeze(-1)

    recorded = {**features, **differentiate(model, case, inputs, labels, cotangents)}
    if kind and case.takes_labels:
        given = model(**inputs, **case.forward, labels=labels).loss
        torch.testing.assert_close(given, recorded["loss"], rtol=1e-6, atol=1e-7)
    if hasattr(getattr(model.base_model, "embeddings", None), "create_position_ids_from_input_ids"):
        make = model.base_model.embeddings.create_position_ids_from_input_ids
        extra["position_ids"] = make(inputs["input_ids"], config.pad_token_id)
    if case.forward.get("interpolate_pos_encoding"):
        embeddings, (height, width) = model.base_model.embeddings, case.pixels
        blank = torch.zeros(1, 1 + height * width // config.patch_size**2, config.hidden_size)
        extra["interpolated_position_embeddings"] = embeddings.interpolate_pos_encoding(blank, height, width).detach()
    error = rounding(model, case, inputs, labels, cotangents, recorded)

    if case.also_in_training:
        wanted = (".running_mean", ".running_var", ".num_batches_tracked")
        before = copy.deepcopy(model.train())
        trained = differentiate(model, case, inputs, labels, cotangents)
        training_error = rounding(before, case, inputs, labels, cotangents, trained)
        error |= {f"train.{name}": value for name, value in training_error.items()}
        recorded |= {f"train.{name}": value for name, value in trained.items()}
        recorded |= {f"train.{n}": value for n, value in file_tensors(model).items() if n.endswith(wanted)}

    tensors = {**inputs, **extra, **recorded, **{f"cotangent.{n}": v for n, v in cotangents.items()}}
    if labels is not None:
        tensors["labels"] = labels
    save_file({name: tensors[name].contiguous().clone() for name in sorted(tensors)}, folder / "reference.safetensors")
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes for the owner alone
    size = sum(path.stat().st_size for path in folder.iterdir())
    return {
        "name": case.name,
        "model_type": config.model_type,
        "architecture": case.architecture,
        "shows": case.shows,
        "inputs": sorted(inputs),
        "forward": case.forward,
        "loss": kind or "cotangents",
        "outputs": sorted(name for name in recorded if name in OUTPUTS),
        "also": sorted(extra),
        "training_pass": case.also_in_training,
        "bytes": size,
        "rounding": error,
    }


def write_tokenizer(folder: Path) -> None:
    """A WordPiece tokenizer of 120 tokens, and what it makes of a few texts."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = transformers.BertTokenizer(vocab={token: i for i, token in enumerate(VOCABULARY)}, model_max_length=32)
    tokenizer.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    singles = [{"text": text, **tokenizer(text)} for text in TEXTS]
    pairs = [{"text": a, "pair": b, **tokenizer(a, b)} for a, b in itertools.pairwise(TEXTS)]
    (folder / "examples.json").write_text(json.dumps(singles + pairs, indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).resolve().parent.parent / "tests" / "references"
    parser.add_argument("--output", type=Path, default=default, help="folder to write to (default: tests/references)")
    parser.add_argument("--only", nargs="*", default=None, help="names of the cases to record again (default: all)")
    arguments = parser.parse_args()
    every = (*CASES, *LANGUAGE_CASES)
    if unknown := set(arguments.only or []) - {case.name for case in every}:
        parser.error(f"no such case: {', '.join(sorted(unknown))}")

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.utils.logging.disable_progress_bar()
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_tokenizer(arguments.output / "tokenizer")

    index = arguments.output / "index.json"
    known = {row["name"]: row for row in json.loads(index.read_text())["cases"]} if index.exists() else {}
    for case in every:
        if arguments.only is None or case.name in arguments.only:
            is_language = not isinstance(case, Case)
            known[case.name] = record_language(case, arguments.output, file_gradients) if is_language else record(case, arguments.output)
            row = known[case.name]
            print(f"{row['bytes'] / 1024:7.0f} KB  {row['name']}  rounding {row['rounding']}")
    rows = [known[case.name] for case in every if case.name in known]
    made_with = {
        "date": datetime.date.today().isoformat(),
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }
    index.write_text(json.dumps({"recorded_with": made_with, "cases": rows}, indent=1) + "\n")
    line = "| `{name}` | {architecture} | {shows} | {kilobytes} |"
    table = "\n".join(line.format(**row, kilobytes=row["bytes"] // 1024) for row in rows)
    (arguments.output / "README.md").write_text(README.format(table=table, **made_with))
    print(f"{sum(row['bytes'] for row in rows) / 2**20:.2f} MB in {len(rows)} cases")


if __name__ == "__main__":
    main()
