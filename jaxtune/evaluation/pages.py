"""Pages from templates: one look for report and comparison, everything that comes from outside escaped, nothing loaded.

`page.html` holds head, style and policy; `parts.html` the table with its caption, the figure in two widths, the list of examples.
"""

from __future__ import annotations

from importlib.resources import files

from markupsafe import Markup

from jaxtune.evaluation import charts, wording

FILTERS = {
    "value": wording.value, "percent": wording.percent, "count": wording.count, "duration": wording.duration, "signed": wording.signed,
}  # fmt: skip


def fill(template: str, **named: object) -> str:
    """A template of this package with everything it names; a name that is missing is an error."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= FILTERS
    return environment.get_template(template).render(chart_style=Markup(charts.STYLE), **named)


def _read(name: str) -> str:
    return files("jaxtune.evaluation").joinpath(f"templates/{name}").read_text(encoding="utf-8")
