"""The language-model part of `record_references.py`: logits, gradients of a labelled batch, and greedy continuations."""

import copy
import zlib
from dataclasses import replace
from pathlib import Path

import torch
import transformers
from reference_language_cases import LanguageCase
from safetensors.torch import save_file

BATCH = 3
NEW_TOKENS = 64
Tensors = dict[str, torch.Tensor]


def build(case: LanguageCase, attempt: int) -> torch.nn.Module:
    """The model of a case, every tensor random: norms are not one and biases not zero."""
    torch.manual_seed(zlib.crc32(case.name.encode()) + 1000 * attempt)
    architecture = getattr(transformers, case.architecture)
    config = architecture.config_class(**case.config, attn_implementation="eager", experts_implementation="eager")
    model = architecture(config).eval()
    is_gemma = config.model_type.startswith("gemma")
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.ndim == 1:
                tensor.copy_(0.2 * torch.randn_like(tensor) + float(name.endswith("weight") and not is_gemma))
            elif "embed" in name or "wte" in name:
                tensor.normal_(0.0, 0.5 if not config.tie_word_embeddings else 0.05 if is_gemma else 0.15)
            else:
                tensor.normal_(0.0, 0.2)
            # Where the head is tied, weak embeddings and a strong last norm keep a model from repeating its last token.
            if config.tie_word_embeddings and name.endswith(("model.norm.weight", "ln_f.weight", "final_layer_norm.weight")):
                tensor.add_(2.0)
    model.generation_config.eos_token_id = None
    return model


def padded(rows: list[torch.Tensor], left: bool) -> Tensors:
    """ids, mask and positions of texts of several lengths."""
    width = max(map(len, rows))
    ids, mask = torch.zeros((len(rows), width), dtype=torch.long), torch.zeros((len(rows), width), dtype=torch.long)
    for row, text in enumerate(rows):
        where = slice(width - len(text), width) if left else slice(0, len(text))
        ids[row, where], mask[row, where] = text, 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


def alone(inputs: Tensors, row: int) -> Tensors:
    """One text without its padding."""
    real = inputs["attention_mask"][row].bool()
    return {name: value[row, real][None] for name, value in inputs.items()}


def forget_length(model: torch.nn.Module) -> None:
    """transformers keeps the longest text's dynamic rope for those that come after it."""
    for module in model.modules():
        if hasattr(module, "max_seq_len_cached") and hasattr(module, "original_inv_freq"):
            module.max_seq_len_cached = module.original_max_seq_len
            module.inv_freq = module.original_inv_freq.clone()


def logits_of(model: torch.nn.Module, case: LanguageCase, inputs: Tensors) -> torch.Tensor:
    """[B, T, V]; zero where padded, if texts go one by one."""
    if not case.one_by_one:
        return model(**inputs, use_cache=False).logits
    logits = []
    for row, mask in enumerate(inputs["attention_mask"]):
        forget_length(model)
        own = model(**alone(inputs, row), use_cache=False).logits[0]
        logits.append(own.new_zeros((len(mask), own.shape[-1])).index_put((mask.nonzero()[:, 0],), own))
    return torch.stack(logits)


def differentiate(model: torch.nn.Module, case: LanguageCase, inputs: Tensors, weight: torch.Tensor) -> Tensors:
    """Logits, and the weighted mean loss of predicting each next token, with its gradients in the parameters."""
    model.zero_grad()
    logits = logits_of(model, case, inputs)
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), inputs["input_ids"][:, 1:], reduction="none")
    loss = (losses * weight[:, 1:]).sum() / weight[:, 1:].sum()
    loss.backward()
    return {"logits": logits.detach(), "loss": loss.detach()}


def continued(model: torch.nn.Module, case: LanguageCase, prompts: Tensors) -> tuple[torch.Tensor, float]:
    """Greedy tokens [B, NEW_TOKENS], and the least distance between the best logit and the next."""

    def run(inputs: Tensors) -> tuple[torch.Tensor, float]:
        forget_length(model)
        found = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
        )
        two = torch.stack(found.logits).topk(2, dim=-1).values
        return found.sequences[:, inputs["input_ids"].shape[1] :], (two[..., 0] - two[..., 1]).min().item()

    if not case.one_by_one:
        return run(prompts)
    rows = [run(alone(prompts, row)) for row in range(len(prompts["input_ids"]))]
    return torch.cat([tokens for tokens, _ in rows]), min(margin for _, margin in rows)


def telling(case: LanguageCase, prompts: Tensors) -> tuple[torch.nn.Module, torch.Tensor, float]:
    """A model whose continuations neither hang on rounding nor repeat themselves at once, with these and their least margin."""
    for attempt in range(50):
        model = build(case, attempt)
        with torch.no_grad():
            tokens, margin = continued(model, case, prompts)
        if margin > 1e-4 and len(tokens.unique()) > 16:
            return model, tokens, margin
    raise ValueError(f"{case.name}: no attempt gives continuations that show anything; change the case")


def record_language(case: LanguageCase, root: Path, file_gradients) -> dict:
    """Write the folder of one case and return its row of the index."""
    folder = root / case.name
    torch.manual_seed(zlib.crc32(case.name.encode()) + 1)
    vocabulary, length = case.config["vocab_size"], case.tokens
    texts = [torch.randint(2, vocabulary, (real,)) for real in (length, length * 9 // 16, length // 4)]
    inputs = padded(texts, left=False)
    weight = inputs["attention_mask"] * torch.tensor([0.0, 1.0, 0.5])[torch.randint(0, 3, inputs["input_ids"].shape)]
    weight[:, 0] = 0.0  # nothing comes before the first token
    prompts = padded([torch.randint(2, vocabulary, (real,)) for real in case.prompts], left=True)
    model, tokens, margin = telling(case, prompts)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    recorded = differentiate(model, case, inputs, weight)
    gradients = file_gradients(model)
    with torch.no_grad():
        wide = copy.deepcopy(model).double()
        by_itself = replace(case, one_by_one=True)  # where everything is padding, float64's mask makes a NaN
        exact = {"logits": logits_of(wide, by_itself, inputs), "prompt_logits": logits_of(wide, by_itself, prompts)}
        recorded["prompt_logits"] = logits_of(model, case, prompts)
    real = {"logits": inputs["attention_mask"].bool(), "prompt_logits": prompts["attention_mask"].bool()}
    rounding = {name: float(f"{(value - recorded[name])[real[name]].abs().max().item():.1e}") for name, value in exact.items()}
    tensors = {
        **{name: value.to(torch.int32) for name, value in inputs.items()},
        **{f"prompt.{name}": value.to(torch.int32) for name, value in prompts.items()},
        **recorded,
        **{f"grad.{name}": value for name, value in gradients.items()},
        "token_weight": weight.float(),
        "generated": tokens.to(torch.int32),
    }
    save_file({name: tensors[name].contiguous().clone() for name in sorted(tensors)}, folder / "reference.safetensors")
    for path in folder.iterdir():
        path.chmod(0o644)
    return {
        "name": case.name,
        "model_type": model.config.model_type,
        "architecture": case.architecture,
        "shows": case.shows,
        "inputs": sorted(inputs),
        "forward": {},
        "loss": "language",
        "outputs": ["logits"],
        "also": ["generated", "prompt_logits"],
        "training_pass": False,
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "rounding": {**rounding, "margin": float(f"{margin:.1e}"), "kinds of token": len(tokens.unique())},
    }
