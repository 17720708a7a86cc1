"""Optimizers over optax, built inside the trace from traced scalars."""

from __future__ import annotations

OPTIMIZERS = {
    "adamw": "jaxtune.training.optimizers.adam:AdamW",
    "adam": "jaxtune.training.optimizers.adam:Adam",
    "nadamw": "jaxtune.training.optimizers.adam:NAdamW",
    "radam": "jaxtune.training.optimizers.adam:RAdam",
    "adabelief": "jaxtune.training.optimizers.adam:AdaBelief",
    "yogi": "jaxtune.training.optimizers.adam:Yogi",
    "sgd": "jaxtune.training.optimizers.sgd:SGD",
    "lion": "jaxtune.training.optimizers.lion:Lion",
    "rmsprop": "jaxtune.training.optimizers.rmsprop:RMSProp",
    "adagrad": "jaxtune.training.optimizers.rmsprop:Adagrad",
    "lamb": "jaxtune.training.optimizers.trust_ratio:Lamb",
    "lars": "jaxtune.training.optimizers.trust_ratio:Lars",
    "fromage": "jaxtune.training.optimizers.trust_ratio:Fromage",
    "novograd": "jaxtune.training.optimizers.novograd:NovoGrad",
    "adafactor": "jaxtune.training.optimizers.adafactor:Adafactor",
    "muon": "jaxtune.training.optimizers.muon:Muon",
    "optax": "jaxtune.training.optimizers.any_optax:AnyOptax",
}
