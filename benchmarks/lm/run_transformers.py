"""transformers.Trainer with peft on PyTorch's CPU backend: rows padded to the longest of their batch, the fused AdamW that it takes by default.

In bfloat16 the frozen base lies in bfloat16 and the adapters in float32, as peft makes them, under autocast: what jaxtune does, too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lm.job import Batches, Job, Marks
from peft import PeftModel
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments, set_seed

IGNORED = -100


class Rows(torch.utils.data.Dataset):
    """The rows of all batches, one after the other, without padding."""

    def __init__(self, batches: Batches, steps: int):
        self.rows = []
        for batch in zip(batches.tokens[:steps], batches.mask[:steps], batches.weight[:steps], strict=True):
            for tokens, mask, weight in zip(*batch, strict=True):
                tokens, weight = torch.tensor(tokens[mask > 0]).long(), torch.tensor(weight[mask > 0])
                self.rows.append({"input_ids": tokens, "labels": torch.where(weight > 0, tokens, IGNORED)})

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    tokens, labels = [row["input_ids"] for row in rows], [row["labels"] for row in rows]
    return {
        "input_ids": pad_sequence(tokens, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in tokens], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
    }


class Watched(Trainer):
    """Keeps the loss of every step."""

    def training_step(self, *args: Any, **options: Any) -> torch.Tensor:
        loss = super().training_step(*args, **options)
        self.losses.append(float(loss))
        return loss


class Watch(TrainerCallback):
    def __init__(self, marks: Marks):
        self.marks = marks

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.marks.step(not self.marks.ends)


def main() -> None:
    job = Job.read()
    torch.set_num_threads(job.threads)
    set_seed(0)
    batches, marks, bfloat16 = Batches.read(job.data), Marks(), job.precision == "bfloat16"
    marks.start()
    base = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.bfloat16 if bfloat16 else torch.float32, use_cache=False)
    arguments = TrainingArguments(
        output_dir=str(Path(job.folder) / "trainer"),
        per_device_train_batch_size=batches.tokens.shape[1],
        max_steps=job.steps,
        learning_rate=job.rate,
        lr_scheduler_type="constant",
        weight_decay=job.weight_decay,
        max_grad_norm=1.0,
        train_sampling_strategy="sequential",
        bf16=bfloat16,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        eval_strategy="no",
        disable_tqdm=True,
    )
    trainer = Watched(
        model=PeftModel.from_pretrained(base, job.adapter, is_trainable=True),
        args=arguments,
        train_dataset=Rows(batches, job.steps),
        data_collator=collate,
        callbacks=[Watch(marks)],
    )
    trainer.losses = []
    trainer.train()
    job.finish(marks, trainer.losses, "torch", "transformers", "peft", "accelerate", "numpy")


if __name__ == "__main__":
    main()
