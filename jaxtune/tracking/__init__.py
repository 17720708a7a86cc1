"""Where the numbers of a run go. `jsonl` is always on."""

from __future__ import annotations

TRACKERS = {
    "jsonl": "jaxtune.tracking.jsonl:JsonLines",
    "tensorboard": "jaxtune.tracking.tensorboard:TensorBoard",
    "wandb": "jaxtune.tracking.wandb:Wandb",
    "mlflow": "jaxtune.tracking.mlflow:Mlflow",
}
