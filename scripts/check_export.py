"""Load a folder that jaxtune exported with `transformers` on PyTorch and compare what the two compute.

Run it in an environment with torch and transformers (see `record_references.py`); jaxtune itself needs neither.

    python scripts/check_export.py runs/my-run/export ours.safetensors [--tolerance 1e-4]

The second file (.npz or .safetensors) holds the inputs under their names in transformers (`input_ids`,
`attention_mask`, `token_type_ids`, `position_ids`, `pixel_values` in NCHW) and what jaxtune made of them: any of
`logits`, `last_hidden_state`, `pooler_output`. Other arrays in it are left alone. Exit code 1 if a tensor is missing,
left over or of another shape, if another architecture was loaded, or if an output is farther away than the tolerance.
"""

import argparse
import inspect
import json
import sys
from pathlib import Path

import numpy
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file

INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "pixel_values")
OUTPUTS = ("last_hidden_state", "pooler_output", "logits", "cls_logits", "distillation_logits")
LOADERS = {
    "ForSequenceClassification": transformers.AutoModelForSequenceClassification,
    "ForTokenClassification": transformers.AutoModelForTokenClassification,
    "ForQuestionAnswering": transformers.AutoModelForQuestionAnswering,
    "ForPreTraining": transformers.AutoModelForPreTraining,
    "ForMaskedLM": transformers.AutoModelForMaskedLM,
    "ForCausalLM": transformers.AutoModelForCausalLM,
    "ForImageClassification": transformers.AutoModelForImageClassification,
    "ForImageClassificationWithTeacher": transformers.AutoModelForImageClassification,
    "Model": transformers.AutoModel,
}


def tensor_names(folder: Path) -> set[str]:
    """The names in all weight files of the folder."""
    names: set[str] = set()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names |= set(file.keys())
    return names


def load(folder: Path) -> tuple[torch.nn.Module, list[str]]:
    """The model as the architecture in config.json says, and every complaint of the loading."""
    named = json.loads((folder / "config.json").read_text()).get("architectures")
    if not named or len(named) != 1:
        raise SystemExit(f"{folder}/config.json: architectures is {named}, expected a list of one class name")
    fitting = [ending for ending in LOADERS if named[0].endswith(ending)]
    if not fitting:
        raise SystemExit(f"{named[0]}: no loader is known for this architecture, add one to LOADERS")
    accepts_pooling_option = "add_pooling_layer" in inspect.signature(getattr(transformers, named[0])).parameters
    has_pooler = any("pooler." in name for name in tensor_names(folder))
    options = {"add_pooling_layer": False} if accepts_pooling_option and not has_pooler else {}
    model, report = LOADERS[max(fitting, key=len)].from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32, attn_implementation="eager", **options
    )
    complaints = [f"{kind}: {entry}" for kind, entries in report.items() for entry in sorted(map(str, entries))]
    if type(model).__name__ != named[0]:
        complaints.append(f"loaded as {type(model).__name__}, config.json says {named[0]}")
    return model.eval(), complaints


def read(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".npz":
        with numpy.load(path) as file:
            return {name: torch.from_numpy(file[name]) for name in file.files}
    return load_file(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the exported folder: config.json and weights")
    parser.add_argument("arrays", type=Path, help="inputs and our outputs, .npz or .safetensors")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="greatest allowed absolute difference")
    parser.add_argument("--interpolate", action="store_true", help="ViT, DeiT: fit the positions to the image size")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    model, complaints = load(arguments.folder)
    arrays = read(arguments.arrays)
    inputs = {name: arrays[name] for name in INPUTS if name in arrays}
    inputs = {name: value.float() if value.is_floating_point() else value.long() for name, value in inputs.items()}
    options = {"interpolate_pos_encoding": True} if arguments.interpolate else {}
    with torch.no_grad():
        found = {**model.base_model(**inputs, **options), **model(**inputs, **options)}

    shared = [name for name in OUTPUTS if name in arrays and found.get(name) is not None]
    if not shared:
        complaints.append(f"nothing to compare: {arguments.arrays} has none of {', '.join(sorted(found))}")
    for name in shared:
        ours, theirs = arrays[name].float(), found[name]
        if ours.shape != theirs.shape:
            complaints.append(f"{name}: ours has shape {list(ours.shape)}, transformers {list(theirs.shape)}")
            continue
        difference = (ours - theirs).abs().max().item()
        print(f"{name}: max abs difference {difference:.3g} (values up to {theirs.abs().max().item():.3g})")
        if not difference <= arguments.tolerance:
            complaints.append(f"{name}: {difference:.3g} is above the tolerance {arguments.tolerance:g}")
    print(f"{type(model).__name__}: {'refused' if complaints else 'ok'}")
    for complaint in complaints:
        print(f"  {complaint}", file=sys.stderr)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
