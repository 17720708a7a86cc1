"""What a comparison leaves behind: choose.json, the plot, and choose.html, one page that loads nothing and runs no script."""

from __future__ import annotations

import jax

from jaxtune.core.printable import printable
from jaxtune.evaluation.charts import alone
from jaxtune.evaluation.pages import fill
from jaxtune.run_folder import RunFolder
from jaxtune.selection.catalogue import Catalogue
from jaxtune.selection.choose_tables import notes, tables
from jaxtune.selection.chosen import Chosen, as_json, plot

WIDE, NARROW = 860, 420


def write_chosen(folder: RunFolder, chosen: Chosen, catalogue: Catalogue) -> None:
    """Writes choose.json, choose.html, environment.json and plots/score_against_cost.svg.

    Raises:
        DiskError: one of them cannot be written.
    """
    folder.write_environment([str(device) for device in jax.devices()])
    folder.write_json("choose.json", as_json(chosen, catalogue))
    (folder.path / "plots").mkdir(exist_ok=True)
    folder.write("plots/score_against_cost.svg", alone(plot(chosen, WIDE)))
    page = fill(
        "choose.html",
        name=printable(folder.path.name, 120),
        verdict=chosen.verdict,
        figure_of={"wide": plot(chosen, WIDE), "narrow": plot(chosen, NARROW)},
        tables=tables(chosen, catalogue),
        notes=notes(chosen),
    )
    folder.write("choose.html", page)
