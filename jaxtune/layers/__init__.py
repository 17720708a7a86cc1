"""Layers shared by all model families, each defined once."""
