"""Searching settings of an experiment: strategies and parameters by kind, Optuna's storage and samplers inside."""

from __future__ import annotations

STRATEGIES = {
    "grid": "jaxtune.search.strategies:Grid",
    "random": "jaxtune.search.strategies:Random",
    "tpe": "jaxtune.search.strategies:TPE",
    "gp": "jaxtune.search.strategies:GP",
    "hyperband": "jaxtune.search.strategies:Hyperband",
}

PARAMETERS = {
    "float": "jaxtune.search.parameters:Float",
    "int": "jaxtune.search.parameters:Int",
    "choice": "jaxtune.search.parameters:Choice",
}
