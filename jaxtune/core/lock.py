"""A lock file that says who owns a folder and can be taken over from an owner that is gone.

The file is made with O_EXCL, so exactly one process can be first. Whoever finds one left by a dead process rewrites it in
place under `flock`, so exactly one of several can be the heir.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtune.core.errors import FolderLockedError

_YOUNG_SECONDS = 10.0  # an empty file this young is being written


class Lock:
    def __init__(self, path: Path):
        self.path = path
        self._mine: dict[str, Any] | None = None

    def acquire(self) -> None:
        """Takes the lock.

        Raises:
            FolderLockedError: another process, alive or on another machine, has it.
        """
        me = describe_process()
        try:
            handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            self._take_over(me)
        else:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                _write(file, me)
        self._mine = me

    def release(self) -> None:
        """Gives the lock back; a lock that somebody else has by now is left alone."""
        mine, self._mine = self._mine, None
        if mine is not None and _owner(self.path) == mine:
            self.path.unlink(missing_ok=True)

    def _take_over(self, me: Mapping[str, Any]) -> None:
        try:
            with open(self.path, "r+", encoding="utf-8") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                text = file.read()
                age = time.time() - os.fstat(file.fileno()).st_mtime
                try:
                    owner = json.loads(text)
                except ValueError:
                    owner = None
                if owner is None and age < _YOUNG_SECONDS:
                    raise FolderLockedError(f"{self.path.parent} is just being taken by another process")
                if owner is not None and not _is_gone(owner):
                    raise FolderLockedError(_message(self.path, owner))
                file.seek(0)
                file.truncate()
                _write(file, me)
        except FileNotFoundError as error:
            raise FolderLockedError(f"{self.path.parent} was given back this moment; try again") from error


def describe_process() -> dict[str, Any]:
    """Who this process is, told apart from a later one with the same number."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "boot": _read("/proc/sys/kernel/random/boot_id"),
        "started": _start_ticks(os.getpid()),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _is_gone(owner: Mapping[str, Any]) -> bool:
    """Whether the owner is certainly dead; of another machine nothing is certain."""
    me = describe_process()
    if owner.get("host") != me["host"]:
        return False
    if owner.get("boot") != me["boot"]:
        return True
    pid = owner.get("pid")
    if not isinstance(pid, int) or not _is_running(pid):
        return True
    return owner.get("started") is not None and _start_ticks(pid) != owner["started"]  # the number was given to another process


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return _read(f"/proc/{pid}/stat").rpartition(")")[2].split()[:1] != ["Z"]  # a zombie runs no more


def _start_ticks(pid: int) -> int | None:
    """When the kernel started the process; None where /proc does not say."""
    words = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(words[19]) if len(words) > 19 else None


def _owner(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _message(path: Path, owner: Mapping[str, Any]) -> str:
    who = f"process {owner.get('pid')} on {owner.get('host')}, since {owner.get('since')}"
    return (
        f"{path.parent} is in use by {who}\n"
        f"  wait for it or stop it; if that machine is gone for good, delete {path}; for a second run give another name"
    )


def _write(file: Any, owner: Mapping[str, Any]) -> None:
    file.write(json.dumps(owner))
    file.flush()
    os.fsync(file.fileno())


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""
