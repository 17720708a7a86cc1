"""The report of a run: one HTML page that loads nothing, made from the run folder alone (and the records, for what is hard about them).

Numbers are made in `sections/`; templates/report.html only places them, escaped. There is no script: what the page shows is all there
is, so it can be mailed, printed, archived and read aloud.
"""

from __future__ import annotations

from pathlib import Path

from jaxtune.core.files import write_whole
from jaxtune.core.printable import printable
from jaxtune.data.sources.base import Records
from jaxtune.evaluation import wording
from jaxtune.evaluation.advice import advise
from jaxtune.evaluation.advice_rules.evidence import Evidence
from jaxtune.evaluation.bootstrap import affordable
from jaxtune.evaluation.pages import fill
from jaxtune.evaluation.record import RunRecord
from jaxtune.evaluation.sections.calibration import calibration, calibration_figures
from jaxtune.evaluation.sections.data import data
from jaxtune.evaluation.sections.headline import headline
from jaxtune.evaluation.sections.parts import parts
from jaxtune.evaluation.sections.quality import quality, quality_figures
from jaxtune.evaluation.sections.samples import samples
from jaxtune.evaluation.sections.seen import Seen
from jaxtune.evaluation.sections.story import story, story_figures


def write_report(folder: Path, records: Records | None = None) -> Path:
    """Writes report.html and plots/*.svg into a run folder; the page's path.

    Args:
        records: the run's records by row number; without them the hardest examples come without text or image.

    Raises:
        ConfigError: the folder holds no run that has ended.
        OSError: it cannot be written.
    """
    seen = Seen.of(RunRecord.read(folder), records)
    figures = story_figures(seen) | quality_figures(seen) | calibration_figures(seen)
    (folder / "plots").mkdir(exist_ok=True)
    for name, figure in figures.items():
        write_whole(folder / "plots" / f"{name}.svg", figure.file)
    told = headline(seen) | quality(seen) | calibration(seen) | parts(seen) | data(seen) | samples(seen) | story(seen)
    page = render(figures=figures, **_facts(seen), **told)
    write_whole(folder / "report.html", page)
    return folder / "report.html"


def _facts(seen: Seen) -> dict[str, object]:
    return {
        "name": printable(seen.record.name, 120),
        "split": seen.split,
        "outcomes": seen.outcomes,
        "problem": seen.record.problem,
        "draws": 0 if seen.outcomes is None else affordable(seen.outcomes),
        "has_records": seen.records is not None,
        "metric": wording.metric(seen.record.best_metric),
        "advice": advise(Evidence.of(seen.record)),
    }


def render(**named: object) -> str:
    """The report's template with everything it names; a name that is missing is an error."""
    return fill("report.html", **named)
