"""Choosing before training: the base model, the learning rate, the batch size."""
