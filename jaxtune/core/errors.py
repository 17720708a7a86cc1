"""Errors that a user can cause. Each says what was found, what was expected and what to do; the exit code travels with the class."""

from __future__ import annotations

from collections.abc import Iterable


class JaxtuneError(Exception):
    """Base of everything a user can cause; the command line prints the message alone and exits with `exit_code`."""

    exit_code = 1


class ConfigError(JaxtuneError):
    """The experiment, a command's arguments or their combination are wrong."""

    exit_code = 2

    def __init__(self, problems: str | Iterable[str]):
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class ModelError(ConfigError):
    """A checkpoint, its config.json and the model family do not fit together."""


class DataError(JaxtuneError):
    """The data contain rows that cannot be trained on."""

    exit_code = 72


class DivergedError(JaxtuneError):
    """Loss or gradients stayed non-finite."""

    exit_code = 71


class HangError(JaxtuneError):
    """A step, save or collective did not end within its time budget."""

    exit_code = 70


class FolderLockedError(JaxtuneError):
    """Another process owns the run folder."""

    exit_code = 73


class DiskError(JaxtuneError):
    """A save failed because the disk is full or not writable."""

    exit_code = 74


class NoCheckpointError(JaxtuneError):
    """No usable checkpoint is left."""

    exit_code = 76


class UnsafeInputError(JaxtuneError):
    """The input would run code or read outside its folder."""

    exit_code = 77


class Preempted(JaxtuneError):
    """SIGTERM arrived: the step was finished and saved; the run can be resumed."""

    exit_code = 75


class Interrupted(JaxtuneError):
    """Ctrl-C arrived: the step was finished and saved; the run can be resumed."""

    exit_code = 130


EXIT_CODES = {
    0: "done",
    1: "an error that was not foreseen; its traceback is kept",
    2: "bad configuration or arguments",
    70: "hang: a step or save did not end in time",
    71: "diverged: loss or gradients stayed non-finite",
    72: "bad data",
    73: "run folder locked by another process",
    74: "disk full or not writable",
    75: "preempted, resumable",
    76: "no usable checkpoint",
    77: "unsafe input refused",
    130: "interrupted, resumable",
}
