"""The house's walls, read from the source: who may import whom, which outside packages come in by which door, and that importing does nothing."""

from __future__ import annotations

import ast
import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "jaxtune"

# Each level imports from lower ones only; design.md section 2. Files of the top level count as packages.
LEVELS: dict[str, int] = {
    "core": 0,
    "config": 1, "parallel": 1, "metrics": 1, "losses": 1, "tracking": 1,
    "layers": 2, "data": 2, "checkpoint": 2, "run_folder": 2,
    "models": 3,
    "tasks": 4,
    "evaluation": 5,
    "training": 6,
    "experiment": 7, "prepare": 7, "adjust": 7, "model_session": 7, "adapter_export": 7, "session": 7,
    "findings": 7, "recorder": 7, "run": 7, "api": 7, "soup": 7, "reference": 7, "teacher": 7, "generating": 7,
    "selection": 8, "search": 8,
    "cli": 9,
    "__init__": 10, "__main__": 10,
}  # fmt: skip
# Where all parts meet there is an order too: a file imports earlier ones only.
MEETING = [
    "experiment",
    "prepare",
    "adjust",
    "model_session",
    "adapter_export",
    "session",
    "teacher",
    "reference",
    "findings",
    "recorder",
    "run",
    "api",
    "soup",
    "generating",
]

# Outside package -> the files or folders that may import it.
DOORS: dict[str, tuple[str, ...]] = {
    "grain": ("data/",),
    "tensorflow_datasets": ("data/",),
    "orbax": ("checkpoint/",),
    "optuna": ("search/",),
    "transformers": ("models/hub.py", "data/transforms/tokenize.py"),
    "tokenizers": ("data/transforms/tokenize.py",),
    "safetensors": ("models/",),
    "wandb": ("tracking/wandb.py",),
    "tensorboardX": ("tracking/tensorboard.py",),
    "mlflow": ("tracking/mlflow.py",),
    "typer": ("cli/",),
    "tensorflow": (),
    "torch": (),
    "pickle": (),
}
# These take long to import, so they are imported where they are used.
SLOW = {
    "transformers",
    "tokenizers",
    "grain",
    "orbax",
    "tensorflow_datasets",
    "optuna",
    "matplotlib",
    "pyarrow",
    "rich",
    "huggingface_hub",
    "wandb",
}

FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


@dataclass(frozen=True)
class Import:
    module: str  # "jaxtune.core.errors", "numpy"
    line: int
    when_run: bool  # at import time: not inside a function, not for type checkers alone


@functools.cache
def tree(file: str) -> ast.Module:
    return ast.parse((PACKAGE / file).read_text(encoding="utf-8"), file)


def imports(file: str) -> list[Import]:
    return list(walk(tree(file), file, True))


def everything() -> list[tuple[str, Import]]:
    return [(file, found) for file in FILES for found in imports(file)]


def walk(node: ast.AST, file: str, when_run: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, when_run) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"jaxtune/{file}:{child.lineno}: relative import"
            # "from jaxtune.models import bert" is an import of jaxtune.models.bert where that is a module
            for alias in child.names:
                inner = f"{child.module}.{alias.name}"
                yield Import(inner if is_module(inner) else child.module or "", child.lineno, when_run)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from walk(child, file, False)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from walk(child, file, when_run and not inside)


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return name.startswith("jaxtune.") and (path.with_suffix(".py").is_file() or path.is_dir())


def part_of(module: str) -> str:
    """ "jaxtune.core.errors" -> "core"."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def owner(file: str) -> str:
    return file.split("/")[0].removesuffix(".py")


def test_every_part_has_a_level() -> None:
    parts = {owner(file) for file in FILES}
    assert parts <= LEVELS.keys(), f"{sorted(parts - LEVELS.keys())}: give it a level in this test and in the design"
    assert set(MEETING) == {part for part, level in LEVELS.items() if level == 7}


def test_imports_come_from_lower_levels() -> None:
    wrong = []
    for file, found in everything():
        here = owner(file)
        if not found.module.startswith("jaxtune") or part_of(found.module) == here:
            continue
        there = part_of(found.module)
        earlier = here in MEETING and there in MEETING and MEETING.index(there) < MEETING.index(here)
        # the package itself holds lazy names for users; inside it nobody goes through it, but for the version
        version = found.module == "jaxtune" and here == "cli"
        if not (LEVELS[there] < LEVELS[here] or earlier or version):
            wrong.append(f"jaxtune/{file}:{found.line} imports {found.module} (level {LEVELS[here]} from level {LEVELS[there]})")
    assert not wrong, "\n".join(wrong)


def test_outside_packages_come_in_by_their_doors() -> None:
    wrong = []
    for file, found in everything():
        outside = found.module.split(".")[0]
        if outside in DOORS and not file.startswith(DOORS[outside]):
            wrong.append(f"jaxtune/{file}:{found.line} imports {outside}; its door is {', '.join(DOORS[outside]) or 'nowhere'}")
        if outside in SLOW and found.when_run:
            wrong.append(f"jaxtune/{file}:{found.line} imports {outside} at the top; it is slow: import it where it is used")
    assert not wrong, "\n".join(wrong)


def test_the_command_line_and_the_package_are_light() -> None:
    """`jaxtune --help` and `import jaxtune` import no jax, at no remove."""
    for start in ("jaxtune", "jaxtune.cli.main", "jaxtune.__main__"):
        reached, waiting = set(), [start]
        while waiting:
            module = waiting.pop()
            path = ROOT.joinpath(*module.split("."))
            file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
            if module in reached or not file.is_file():
                continue
            reached.add(module)
            found = [one.module for one in imports(file.relative_to(PACKAGE).as_posix()) if one.when_run]
            heavy = {name.split(".")[0] for name in found} & {"jax", "flax", "optax", "numpy", *SLOW}
            assert not heavy, f"{start} reaches {module}, which imports {sorted(heavy)}"
            waiting += [name for name in found if name.startswith("jaxtune")]
            waiting += [
                ".".join(name.split(".")[:end]) for name in found if name.startswith("jaxtune") for end in range(1, name.count(".") + 1)
            ]


@pytest.mark.parametrize("folder", ["jaxtune", "tests", "scripts", "benchmarks"])
def test_files_stay_short(folder: str) -> None:
    long = {
        path.relative_to(ROOT).as_posix(): lines
        for path in (ROOT / folder).rglob("*.py")
        if (lines := path.read_text(encoding="utf-8").count("\n")) >= 400
    }
    assert not long, long


def test_every_module_says_what_it_does() -> None:
    silent = [file for file in FILES if tree(file).body and not ast.get_docstring(tree(file))]
    assert not silent, silent
    defines = (ast.FunctionDef, ast.ClassDef)
    wordless = [file for file in FILES if any(isinstance(node, defines) for node in tree(file).body) and not is_future(tree(file))]
    assert not wordless, f"without from __future__ import annotations: {wordless}"


def is_future(module: ast.Module) -> bool:
    return any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in module.body)


# Imports every module of the package in a fresh process and writes down what that did besides.
PROBE = """
import importlib, json, os, sys
package = sys.argv[1]
found = {"read": [], "written": [], "changed": {}, "backends": [], "environment": []}

def ours():
    '''The file of ours that asks, through whatever of the standard library.'''
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(package):
            return name
        if not any(part in name for part in ("<string>", "_collections_abc", "pathlib", "codecs", "/os.py", "<frozen os>")):
            return None
        frame = frame.f_back
    return None

def watch(event, arguments):
    if event == "open":
        path, mode, flags = arguments
        writes = (isinstance(mode, str) and any(c in mode for c in "wax+")) or (mode is None and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if writes and str(path) != os.devnull:
            found["written"].append(str(path))
        elif ours():
            found["read"].append(f"{ours()} reads {path}")
    elif event in ("os.mkdir", "os.remove", "os.rename", "shutil.rmtree", "socket.connect", "subprocess.Popen"):
        found["written"].append(f"{event} {arguments[0]}")

get = os._Environ.__getitem__
def noticed(self, key):
    if name := ours():
        found["environment"].append(f"{name} reads {key}")
    return get(self, key)

import jax, flax.nnx, optax, pydantic, numpy, yaml, typer  # what stands at the top of files; their own doings are not ours
flags = dict(jax.config.values)
environment, modules = dict(os.environ), set(sys.modules)
sys.addaudithook(watch)
os._Environ.__getitem__ = noticed
for module in sys.argv[2:]:
    importlib.import_module(module)
os._Environ.__getitem__ = get
for name, value in flags.items():
    if jax.config.values[name] != value:
        found["changed"][name] = repr(jax.config.values[name])
found["changed"] |= {name: value for name, value in os.environ.items() if environment.get(name) != value}
from jax._src import xla_bridge
found["backends"] = list(xla_bridge._backends)
found["slow"] = sorted(name for name in set(sys.modules) - modules if name in %s)
print(json.dumps(found))
"""


def probe(package: Path, modules: list[str]) -> dict[str, object]:
    code = PROBE % (SLOW | {"tensorflow", "torch"})
    command = [sys.executable, "-B", "-c", code, str(package), *modules]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=package.parent)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_importing_does_nothing() -> None:
    """No backend starts, no flag or environment variable is set or read, nothing is written or read, no slow package comes along."""
    modules = [("jaxtune." + file.removesuffix(".py").replace("/", ".")).removesuffix(".__init__") for file in FILES]
    found = probe(PACKAGE, [name for name in modules if name != "jaxtune.__main__"])
    assert found == {"read": [], "written": [], "changed": {}, "backends": [], "environment": [], "slow": []}


def test_the_probe_notices(tmp_path: Path) -> None:
    package = tmp_path / "busy"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import os\nfrom pathlib import Path\nimport jax.numpy as jnp\nimport pyarrow\n"
        "HOME = os.environ.get('HOME')\nZERO = jnp.zeros(3)\njax = __import__('jax')\njax.config.update('jax_enable_x64', True)\n"
        "Path('left.txt').write_text('x')\nTEXT = Path('left.txt').read_text()\nos.environ['BUSY'] = '1'\n"
    )
    found = probe(package, ["busy"])
    file = package / "__init__.py"
    assert found["backends"] and found["slow"] == ["pyarrow"]
    assert found["environment"] == [f"{file} reads HOME"] and found["read"] == [f"{file} reads left.txt"]
    assert found["written"] == ["left.txt"] and found["changed"] == {"jax_enable_x64": "True", "BUSY": "1"}
