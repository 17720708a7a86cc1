"""transformers.Trainer on PyTorch's CPU backend: dynamic padding and length grouping, the fused AdamW that it takes by default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from encoder.job import Job, Marks, Split, read_splits, versions
from torch._dynamo.utils import counters
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)


class Rows(torch.utils.data.Dataset):
    def __init__(self, split: Split):
        self.rows = [
            {"input_ids": row.tolist(), "attention_mask": [1] * len(row), "labels": int(label)}
            for row, label in zip(split.tokens, split.labels, strict=True)
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


class Watch(TrainerCallback):
    def __init__(self, marks: Marks):
        self.marks, self.graphs = marks, 0

    def on_step_end(self, *_: Any, **__: Any) -> None:
        graphs = counters["stats"]["unique_graphs"] + counters["aot_autograd"]["total"]
        self.marks.step(graphs != self.graphs or not self.marks.ends)
        self.graphs = graphs

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        self.marks.epoch()


def main() -> None:
    job = Job.read()
    torch.set_num_threads(job.threads)
    set_seed(job.seed)
    splits, marks = read_splits(job.data), Marks()
    classes = int(splits["train"].labels.max()) + 1
    model = AutoModelForSequenceClassification.from_pretrained(job.model, num_labels=classes, dtype=torch.float32)
    length: dict[str, Any] = {"num_train_epochs": job.epochs} if job.mode == "epochs" else {"max_steps": job.steps}
    arguments = TrainingArguments(
        output_dir=str(Path(job.folder) / "trainer"),
        per_device_train_batch_size=job.batch,
        per_device_eval_batch_size=job.batch,
        learning_rate=job.rate,
        lr_scheduler_type="linear",
        warmup_steps=job.warm_up,
        weight_decay=job.weight_decay,
        max_grad_norm=1.0,
        train_sampling_strategy="group_by_length",
        bf16=job.precision == "bfloat16",
        torch_compile=job.compiled,
        use_cpu=True,
        seed=job.seed,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        eval_strategy="no",
        disable_tqdm=True,
        **length,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=Rows(splits["train"] if job.mode == "epochs" else splits["train"].full(job.max_tokens)),
        data_collator=DataCollatorWithPadding(AutoTokenizer.from_pretrained(job.model)),
        callbacks=[Watch(marks)],
    )
    marks.start()
    trainer.train()
    outcome: dict[str, Any] = {}
    if job.mode == "epochs":
        outcome["accuracy"] = {name: accuracy(trainer, splits[name]) for name in ("validation", "test")}
    job.finish({**outcome, **marks.outcome(), "versions": versions("torch", "transformers", "accelerate", "numpy")})


def accuracy(trainer: Trainer, split: Split) -> float:
    found: Any = trainer.predict(Rows(split))  # with length grouping its rows come in another order than the split's
    return float(np.mean(np.argmax(found.predictions, -1) == found.label_ids))


if __name__ == "__main__":
    main()
