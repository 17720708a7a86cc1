"""What a person probably meant by a setting that does not exist: a slip of the keys, another section, another tool's word."""

from __future__ import annotations

import difflib
from typing import Any

from jaxtune.config.schema import Place, chosen, kinds, place_at, settings
from jaxtune.config.yaml12 import Key, dotted
from jaxtune.core.component import Component

# A word of another tool -> endings of our paths, the first that exists is named; a | stands between words that are as good.
_RATE = ("schedule.peak|rate",)
_BATCH = ("data.batch_size", "batch_size")
_LENGTH = ("data.max_tokens", "max_tokens")
_CLIP = ("clip_norm",)
ALIASES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("lr", "learning_rate", "lr0", "base_lr", "max_lr", "peak_lr", "peak_learning_rate", "step_size"), _RATE),
    **dict.fromkeys(("min_lr", "end_lr", "lr_end", "min_lr_rate"), ("schedule.end",)),
    **dict.fromkeys(("lr_scheduler", "lr_scheduler_type", "scheduler"), ("optimizer.schedule", "schedule")),
    **dict.fromkeys(("warmup_ratio", "warmup_steps", "num_warmup_steps", "warmup_fraction"), ("schedule.warmup",)),
    **dict.fromkeys(("optim", "optimiser"), ("optimizer",)),
    **dict.fromkeys(("wd", "decay"), ("optimizer.weight_decay", "weight_decay")),
    **dict.fromkeys(("adam_beta1", "beta_1", "b1"), ("optimizer.beta1",)),
    **dict.fromkeys(("adam_beta2", "beta_2", "b2"), ("optimizer.beta2",)),
    **dict.fromkeys(("adam_epsilon", "eps"), ("optimizer.epsilon",)),
    **dict.fromkeys(("layerwise_lr_decay", "llrd", "layer_lr_decay"), ("layer_decay",)),
    **dict.fromkeys(("max_grad_norm", "clip_grad_norm", "gradient_clip_val", "gradient_clipping", "grad_clip", "clipnorm"), _CLIP),
    **dict.fromkeys(("batch", "bs", "train_batch_size", "global_batch_size", "micro_batch_size"), _BATCH),
    **dict.fromkeys(("per_device_train_batch_size", "per_device_batch_size", "per_gpu_train_batch_size"), _BATCH),
    **dict.fromkeys(("max_tokens_per_batch", "tokens_per_batch"), ("data.batch_tokens",)),
    **dict.fromkeys(("max_seq_length", "max_seq_len", "max_sequence_length", "max_length", "max_len", "seq_len", "seq_length"), _LENGTH),
    **dict.fromkeys(("sequence_len", "sequence_length", "cutoff_len", "model_max_length"), _LENGTH),
    **dict.fromkeys(("truncation", "truncate"), ("data.over_length", "over_length")),
    **dict.fromkeys(("num_train_epochs", "num_epochs", "n_epochs", "nb_epochs", "max_epochs", "train_epochs"), ("phases.epochs", "epochs")),
    **dict.fromkeys(("max_steps", "num_steps", "train_steps", "total_steps"), ("phases.steps", "steps")),
    **dict.fromkeys(("gradient_accumulation_steps", "grad_accum", "accumulate_grad_batches", "accumulation_steps"), ("accumulation",)),
    **dict.fromkeys(("freeze", "frozen", "freeze_layers", "unfreeze", "trainable", "trainable_layers"), ("phases.train", "train")),
    **dict.fromkeys(("early_stopping", "early_stopping_patience", "patience"), ("stopping.patience", "phases.stopping", "stopping")),
    **dict.fromkeys(("model_name_or_path", "model_name", "base_model", "pretrained_model_name_or_path"), ("model.base", "base")),
    **dict.fromkeys(("pretrained", "backbone", "encoder", "from_pretrained"), ("model.base", "base")),
    **dict.fromkeys(("torch_dtype", "precision", "mixed_precision", "bf16", "fp16"), ("model.dtype", "dtype")),
    **dict.fromkeys(("gradient_checkpointing", "activation_checkpointing", "checkpointing"), ("model.remat", "remat")),
    **dict.fromkeys(("hidden_dropout_prob", "dropout_rate", "dropout_prob"), ("model.dropout", "dropout")),
    **dict.fromkeys(
        ("dataset", "dataset_name", "datasets", "train_file", "train_data", "data_path", "data_dir", "data_files"), ("data.source",)
    ),
    **dict.fromkeys(("val_size", "validation_split", "val_split", "valid_size", "eval_split"), ("split.validation",)),
    **dict.fromkeys(("test_size", "test_split"), ("split.test",)),
    **dict.fromkeys(("text_column", "text_column_name", "text_field", "input_column"), ("task.text",)),
    **dict.fromkeys(("label_column", "label_column_name", "label_field", "target", "target_column"), ("task.label",)),
    **dict.fromkeys(("label_smoothing_factor", "smoothing"), ("label_smoothing",)),
    **dict.fromkeys(("loss_fn", "criterion"), ("task.loss",)),
    **dict.fromkeys(("metric_for_best_model", "monitor", "best_metric"), ("task.best",)),
    **dict.fromkeys(("eval_steps", "eval_every", "evaluation_steps", "val_check_interval"), ("evaluation.every_steps",)),
    **dict.fromkeys(("save_steps", "save_every", "checkpoint_every"), ("checkpoint.every_steps",)),
    **dict.fromkeys(("save_total_limit", "max_to_keep", "keep_last"), ("checkpoint.keep_latest",)),
    **dict.fromkeys(("report_to", "logger", "loggers", "trackers"), ("tracking",)),
    **dict.fromkeys(("run_name", "experiment_name", "project"), ("name",)),
    **dict.fromkeys(("r", "lora_r", "lora_rank"), ("adapter.rank", "rank")),
    **dict.fromkeys(("lora_alpha",), ("adapter.alpha", "alpha")),
    **dict.fromkeys(("lora_dropout",), ("adapter.dropout",)),
    **dict.fromkeys(("target_modules", "lora_target_modules"), ("adapter.targets", "targets")),
    **dict.fromkeys(("use_rslora",), ("adapter.rslora", "rslora")),
    **dict.fromkeys(("peft_config", "lora_config", "lora", "peft"), ("model.adapter",)),
    **dict.fromkeys(("load_in_4bit", "load_in_8bit", "quantization_config", "quantization", "bnb_4bit_quant_type"), ("model.quantize",)),
    **dict.fromkeys(("attn_implementation",), ("model.attention",)),
    **dict.fromkeys(("assistant_only_loss", "completion_only_loss", "train_on_responses_only", "train_on_inputs"), ("task.train_on",)),
    **dict.fromkeys(("messages_field", "messages_column", "conversations"), ("task.messages",)),
    **dict.fromkeys(("dataset_text_field",), ("task.text",)),
    **dict.fromkeys(("loss_type",), ("task.loss",)),
    **dict.fromkeys(("sample_packing", "packing_strategy"), ("data.packing",)),
    **dict.fromkeys(("teacher_model", "teacher_model_name_or_path"), ("task.teacher.base", "task.teacher")),
    **dict.fromkeys(("num_beams", "beam_size"), ("generation.beams",)),
    **dict.fromkeys(("max_tokens_to_generate", "max_completion_length"), ("generation.max_new_tokens",)),
    **dict.fromkeys(("random_seed", "seed_everything", "random_state"), ("seed",)),
}

# Words of other tools that have no setting here, and where their matter is decided.
ELSEWHERE: dict[str, str] = {
    **dict.fromkeys(("output_dir", "output_path", "save_dir", "log_dir"), "--runs-dir and --name choose the run folder"),
    **dict.fromkeys(("do_train", "do_eval", "do_predict"), "the command says it (jaxtune train, evaluate, predict)"),
    **dict.fromkeys(("resume", "resume_from_checkpoint"), "jaxtune resume RUN does that"),
    **dict.fromkeys(("num_labels", "num_classes"), "the classes are counted in the training data"),
    **dict.fromkeys(("device", "devices", "gpus", "accelerator", "use_cpu", "no_cuda"), "jax uses the devices that jaxtune doctor shows"),
    **dict.fromkeys(("trust_remote_code",), "code of a checkpoint is never run"),
    **dict.fromkeys(("ref_model", "ref_model_name_or_path"), "the reference is the model as it is before training"),
    **dict.fromkeys(("chat_template", "chat_template_path"), "the template is the checkpoint's own"),
    **dict.fromkeys(("do_sample",), "a temperature above 0 draws"),
}


def suggest(cls: type[Component], data: Any, key: Key) -> str:
    """What to write instead of the unknown setting at `key`: `; did you mean "model.base"?` or the settings known there."""
    word = _plain(key[-1])
    found = place_at(cls, data, key[:-1])
    owner = chosen(*found) if found else None
    beside = {_plain(name): name for name in owner.model_fields} if owner else {}
    known = [path for path, _ in settings(cls, data)]

    if word in beside:
        return _did_you_mean((*key[:-1], beside[word]))
    if path := _closest(key, [p for ending in ALIASES.get(word, ()) for p in known if _ends(p, ending)]):
        return f'; this is "{dotted(path)}" here'
    if word in ELSEWHERE:
        return f"; {ELSEWHERE[word]}"
    if close := difflib.get_close_matches(word, beside, 1, 0.8):
        return _did_you_mean((*key[:-1], beside[close[0]]))
    if path := _closest(key, [p for p in known if _plain(p[-1]) == word]):
        return _did_you_mean(path)
    if others := _other_kinds(found, owner, str(key[-1])):
        return f"; it is a setting of {others}"
    if close := difflib.get_close_matches(word, beside, 1, 0.6):
        return _did_you_mean((*key[:-1], beside[close[0]]))
    if close := difflib.get_close_matches(word, {_plain(p[-1]) for p in known}, 1, 0.75):
        return _did_you_mean(_closest(key, [p for p in known if _plain(p[-1]) == close[0]]) or ())
    return f" (known here: {', '.join(owner.model_fields) or 'no settings'})" if owner else ""


def _did_you_mean(path: Key) -> str:
    return f'; did you mean "{dotted(path)}"?'


def _plain(name: str | int) -> str:
    return str(name).lower().replace("-", "_")


def _ends(path: Key, ending: str) -> bool:
    """Whether a path, without the numbers of list items, ends like this."""
    words = [str(part) for part in path if not isinstance(part, int)]
    wanted = [part.split("|") for part in ending.split(".")]
    return len(words) >= len(wanted) and all(word in part for word, part in zip(words[-len(wanted) :], wanted, strict=True))


def _closest(key: Key, paths: list[Key]) -> Key | None:
    """The path that shares most of its beginning with `key`; of equal ones the first."""

    def shared(path: Key) -> int:
        return next((i for i, (a, b) in enumerate(zip(path, key, strict=False)) if a != b), min(len(path), len(key)))

    return max(paths, key=shared, default=None)


def _other_kinds(found: tuple[Place, Any] | None, owner: type[Component] | None, name: str) -> str:
    """Which other kinds of the same table have this setting: `adamw, lion (here: sgd)`."""
    if not found or not owner or not found[0].choices:
        return ""
    choice = found[0].choices[0]
    having = [kind for kind, cls in kinds(choice).items() if name in cls.model_fields]
    return f"kind {', '.join(having)}, but the kind here is {choice.kind(owner)}" if having else ""
