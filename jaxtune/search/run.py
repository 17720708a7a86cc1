"""`search()`: from a search file to a folder with the winner's experiment, begun or gone on with.

search.yaml              as understood                        journal.log        Optuna's storage (unless `storage` is a URL)
search.json              the numbers, after every trial       trials.jsonl       one trial a line
winner.yaml              the best so far as an experiment     finalists.jsonl    repeats with other seeds
search.html, plots/      the page                             events.jsonl       narrowed ranges, trials gone on with
trials/NUMBER/           what a running trial keeps; gone when it ends
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from jaxtune.config.document import load_document
from jaxtune.config.read import apply_overrides, build
from jaxtune.config.write import settings_to_yaml, to_yaml
from jaxtune.core.errors import ConfigError, FolderLockedError, Interrupted, Preempted
from jaxtune.core.files import write_whole
from jaxtune.core.redact import redact
from jaxtune.parallel import hosts
from jaxtune.run_folder import RunFolder, runs_folder
from jaxtune.search.ledger import Ledger, require_optuna
from jaxtune.search.page import write_page
from jaxtune.search.results import WINNER, Found, Status, write_results, write_winner
from jaxtune.search.settings import Search
from jaxtune.search.space import Space
from jaxtune.search.study import Study, TrialEnded, Watch, made_ready

MARKS = ("search.yaml", "journal.log", "workers", "lock")  # of a search's folder, however early it was killed
MOST_WORKERS = 64  # of one machine on one folder


@dataclass(frozen=True)
class SearchResult:
    """What a search hands back; `numbers` is what search.json holds."""

    folder: Path
    numbers: Mapping[str, Any]

    @property
    def winner(self) -> Path:
        """The best as an experiment file."""
        return self.folder / WINNER

    @property
    def page(self) -> Path:
        return self.folder / "search.html"


def search(
    file: str | Path | Search,
    overrides: Sequence[str] = (),
    *,
    runs_dir: str | Path = "runs",
    name: str | None = None,
    worker: bool = False,
    watch: Watch = lambda event: None,
) -> SearchResult:
    """Searches settings of an experiment. An existing search of the name goes on; one that is done is looked at again.

    Args:
        file: a search file, or a `Search` (whose experiment is then relative to the current folder).
        overrides: `key=value` words for the file.
        runs_dir: where the folder `<runs_dir>/<name>` is.
        worker: only help with the trials of a search whose storage is a URL; no finalists, no winner.
        watch: is given every event as it happens.

    Raises:
        ConfigError: the file, the experiment, the space or their combination are wrong, Optuna is missing, the search that is there
            is another one, or every trial failed.
        Preempted, Interrupted: a signal came; what ran is saved.
    """
    require_optuna()
    wanted, where = (file, lambda key: key[0]) if isinstance(file, Search) else load_search(file, overrides)
    if isinstance(file, Search) and overrides:
        raise ConfigError("overrides go with a search file; change a Search by model_copy")
    wanted = wanted if name is None else build_named(wanted, name)
    if worker and wanted.storage is None:
        raise ConfigError(
            "--worker: the search's storage is a file of one process; set storage to a URL, such as postgresql://user@host/name"
        )
    space = Space.open(wanted, where)
    place = runs_folder(runs_dir) / wanted.name
    hosts.start()
    if jax.process_count() > 1:
        raise ConfigError(
            "a search trains in one process; to use many machines, set storage to a URL and start `jaxtune search --worker` on each"
        )
    if place.exists() and any(place.iterdir()) and not any((place / mark).exists() for mark in MARKS):
        raise ConfigError(f"{place} exists and is no search; give another --name")
    workbench, rungs = made_ready(wanted, space)
    with owned(place, wanted.storage is not None) as own:
        ledger = Ledger.open(place, wanted.name, wanted.storage, space.higher_is_better, identity(own))
        check_same(wanted, space, ledger, place)
        write_whole(place / "search.yaml", to_yaml(shown(wanted)))
        study = Study(wanted, space, ledger, place, own, watch, workbench, rungs)
        return SearchResult(place, work(study, place, worker))


def work(study: Study, place: Path, join: bool) -> dict[str, Any]:
    """Runs the study; after every trial the folder says how far it has come."""
    if join:
        study.run(join)
        found = Found.read(study.ledger, [], study.space.higher_is_better)
        return found.numbers(study.search, study.space, study.trials, "running")
    outside = study.watch
    status: Status = "failed"

    def tell(event: Any) -> None:
        if isinstance(event, TrialEnded):
            conclude(study, place, "running")
        outside(event)

    study.watch = tell
    try:
        study.run(join)
        status = "done"
    except (Preempted, Interrupted):
        status = "interrupted"
        raise
    finally:
        numbers = conclude(study, place, status)
    return numbers


def conclude(study: Study, place: Path, status: Status) -> dict[str, Any]:
    """Writes everything that can be read from the storage."""
    found = Found.read(study.ledger, list(study.repeats.read()), study.space.higher_is_better)
    numbers = found.numbers(study.search, study.space, study.trials, status)
    if found.winner is not None:
        name = f"{study.search.name}-winner"
        write_winner(place, study.space, name, found.winner.settings, said(numbers))
    write_results(place, found, numbers)
    write_page(place, study.space, found, numbers)
    return numbers


def said(numbers: Mapping[str, Any]) -> str:
    """The comment above the winner's settings."""
    winner, metric = numbers["winner"], numbers["metric"]
    lines = [f"Found by the search {numbers['name']}: trial {winner['trial']}, {metric} {winner['value']:.4g} on validation."]
    if repeats := winner.get("repeats"):
        lines.append(
            f"With {len(repeats['values'])} other seeds: {repeats['mean']:.4g} on average, {repeats['least']:.4g} to {repeats['greatest']:.4g}."
        )
    return "\n".join(lines)


# -- the file and the folder --------------------------------------------------------------------------------------------


def load_search(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Search, Callable[[tuple[str, ...]], str]]:
    """(a search file, key -> `file.yaml:12`); the experiment's path is then relative to the current folder.

    Raises:
        ConfigError: all problems of the file, each with its line.
    """
    document = apply_overrides(load_document(path), overrides, Search)
    found = build(document, Search)
    experiment = Path(path).expanduser().parent / Path(found.experiment).expanduser()
    return found.model_copy(update={"experiment": str(experiment)}), lambda key: str(document.origin(key))


def build_named(found: Search, name: str) -> Search:
    """The search under another name, checked like one that stands in the file."""
    return Search.model_validate({**dict(found), "name": name})


def shown(found: Search) -> Search:
    """Without the password of its storage."""
    return found if found.storage is None else found.model_copy(update={"storage": redact(found.storage)})


@contextmanager
def owned(place: Path, shared: bool) -> Iterator[Path]:
    """The search's folder; where many workers share it, the first free folder of this machine inside it. Locked, with a log.

    Raises:
        FolderLockedError: another process has it.
    """
    names = [f"workers/{socket.gethostname()}-{number}" for number in range(MOST_WORKERS)] if shared else ["."]
    for name in names:
        path = place / name
        path.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            try:
                held.enter_context(RunFolder(path))
            except FolderLockedError:
                if name == names[-1]:
                    raise
                continue
            yield path
            return


def identity(own: Path) -> str:
    """The name of a worker in the storage: its folder's, with a word by chance, because machines may share a host name. It lasts as long as
    the folder, so that a worker that is started again finds its trial."""
    file = own / "worker"
    if not file.is_file():
        write_whole(file, f"{own.name}-{secrets.token_hex(4)}\n")
    return file.read_text(encoding="utf-8").strip()


def check_same(wanted: Search, space: Space, ledger: Ledger, place: Path) -> None:
    """Raises:
    ConfigError: the storage holds a search of this name that differs in more than its budget.
    """
    parts: dict[str, Any] = wanted.model_dump(include={"space", "strategy", "narrow", "seed"})
    described = {name: settings_to_yaml({name: value}) for name, value in parts.items()}
    described["experiment"] = to_yaml(space.base)
    if wanted.narrow is not None:
        described["trials"] = str(wanted.trials)
    before, _ = ledger.fact("search", lambda: described)
    changed = [name for name in {**before, **described} if before.get(name) != described.get(name)]
    if changed:
        raise ConfigError(
            f"{place} holds a search with another {', '.join(changed)}; give this one another name (name=..., --name), or restore what changed"
        )
