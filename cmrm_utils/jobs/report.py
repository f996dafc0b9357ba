"""One HTML page of a run: the headline table, then every notebook; opens offline."""

import base64
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bleach
import nbformat
import pandas as pd
from bleach.css_sanitizer import CSSSanitizer
from markupsafe import Markup
from nbconvert.filters import markdown2html

from cmrm_utils.conditions import CONDITION_NAMES
from cmrm_utils.errors import InputError
from cmrm_utils.results.rates import MEASURES, REST, is_mean
from cmrm_utils.results.text import percent, rendered
from cmrm_utils.store import replacing

_HERE = Path(__file__).parent


_TAGS = {*bleach.ALLOWED_TAGS, "div", "span", "p", "pre", "br", "hr", "sub", "sup"}
_TAGS |= {"details", "summary"}


_TAGS |= {"h1", "h2", "h3", "h4", "table", "thead", "tbody", "tr", "th", "td", "mark"}
"""The tags that Markdown, and a cell's own HTML, may hold; anything else is shown as text."""


_PANDAS_STYLE = re.compile(r"<style scoped>.*?</style>", re.DOTALL)


_SPANS = ["rowspan", "colspan"]


_ATTRIBUTES = {"a": ["href", "title", "class"], "td": _SPANS, "th": [*_SPANS, "valign"]}
_ATTRIBUTES |= {"span": ["style"]}


_STYLES = CSSSanitizer(allowed_css_properties=["background-color", "display", "padding"])
"""What a span may set: the ground of a shaded cell."""


def _cells(path: Path) -> list[nbformat.NotebookNode]:
    """The cells of a notebook, without those that papermill injected.

    Raises:
        InputError: the file is cut short, as after a kill during the write.
    """
    try:
        notebook = nbformat.read(path, as_version=4)
    except ValueError as error:
        raise InputError(f"{path}: no whole notebook; run it again, or delete it") from error
    return [
        cell
        for cell in notebook.cells
        if "injected-parameters" not in cell.metadata.get("tags", [])
    ]


def _clean(page: str) -> Markup:
    """HTML that does nothing but show: any tag that is not in :data:`_TAGS` becomes text."""
    page = _PANDAS_STYLE.sub("", page)
    return Markup(bleach.clean(page, tags=_TAGS, attributes=_ATTRIBUTES, css_sanitizer=_STYLES))


def browse(rows: pd.DataFrame, *, most: int = 8) -> str:
    """Responses to read side by side: text only, own image unedited, and each edit.

    One fold for each edit, task and change of outcome ("complied → refused"). All text is escaped
    and nothing needs a script.

    Args:
        rows: ``sample, task, setting, query, response, outcome``, one row per response. A setting
            that is not among :data:`cmrm_utils.conditions.CONDITION_NAMES` is an edit.
        most: samples shown of each fold; the fold says how many there are.

    Returns:
        HTML; empty where no sample has a response both with and without an edit.
    """
    unedited = CONDITION_NAMES["own"]
    requests = rows[rows["task"].isin(["harmful", "benign"])]
    answers = requests.drop_duplicates(["sample", "setting"]).set_index(["sample", "setting"])
    outcomes = answers["outcome"].unstack()
    settings = requests["setting"].unique()
    edits = [setting for setting in settings if setting not in CONDITION_NAMES.values()]
    folds = {}
    for edit in edits if unedited in outcomes else []:
        pairs = outcomes[[unedited, edit]].dropna()
        pairs.insert(0, "task", requests.groupby("sample")["task"].first())
        folds[edit] = [
            (*change, list(fold.index[:most]), len(fold))
            for change, fold in pairs.groupby(list(pairs.columns))
        ]
    return rendered(
        _HERE / "responses.html.j2",
        edits={edit: some for edit, some in folds.items() if some},
        answers=answers.to_dict("index"),
        settings=[CONDITION_NAMES["none"], unedited, *edits],
        unedited=unedited,
    )


SLIDER = ("refused", *REST, "log-odds", "over-refusal", "benign answered", "visual questions")
"""The measures that the slider shows, as far as they were measured."""


def slider(curves: pd.DataFrame, excerpts: pd.DataFrame | None = None) -> str:
    """A slider over a sweep's alphas: each measure with its interval, and an answer's beginning.

    The script in it needs no network. It only moves values that are written into the page.

    Args:
        curves: ``method, alpha, measure, rate, low, high, hits, n``.
        excerpts: ``method, alpha, request, excerpt`` of one request, as far as there are any.

    Returns:
        HTML; empty where no method has two alphas.
    """
    curves = curves[curves["measure"].isin(SLIDER)]
    if curves["alpha"].nunique() < 2:
        return ""
    kept: dict[Any, str] = {}
    if excerpts is not None:
        kept = excerpts.set_index(["method", "alpha"])["excerpt"].to_dict()
    means = curves[curves["measure"].map(is_mean)]
    least, most = min(means["low"].min(), 0.0), max(means["high"].max(), 0.0)

    def place(row: pd.Series) -> dict[str, float]:
        """Where on the scale a rate and its interval are, in per cent of its length."""
        start, end = (least, most) if is_mean(row["measure"]) else (0.0, 1.0)
        ends = {name: 100 * (row[name] - start) / (end - start) for name in ("rate", "low", "high")}
        return {name: round(value, 2) for name, value in ends.items()}

    def stop(method: str, alpha: float, rows: pd.DataFrame) -> dict[str, Any]:
        ordered = rows.sort_values("measure", key=lambda names: names.map(SLIDER.index))
        shown = {
            row["measure"]: {
                "text": percent(row),
                "place": place(row),
                "colour": MEASURES[row["measure"]].colour,
            }
            for _, row in ordered.iterrows()
        }
        return {"alpha": f"{alpha:g}", "measures": shown, "excerpt": kept.get((method, alpha), "")}

    methods = [
        {"name": method, "stops": [stop(method, *each) for each in rows.groupby("alpha")]}
        for method, rows in curves.groupby("method", sort=False)
    ]
    scale = "0 to 100%" + ("" if means.empty else f"; log-odds {least:+.1f} to {most:+.1f}")
    request = excerpts["request"].iloc[0] if kept and excerpts is not None else ""
    page = _HERE / "slider.html.j2"
    return rendered(page, methods=methods, scale=scale, request=request)


def write_report(
    path: Path,
    title: str,
    notebooks: Sequence[Path],
    *,
    headline: pd.DataFrame | None = None,
    reading: str = "",
    figure: Path | None = None,
    responses: pd.DataFrame | None = None,
    curves: pd.DataFrame | None = None,
    excerpts: pd.DataFrame | None = None,
) -> None:
    """Write the report.

    Args:
        path: of the HTML file.
        title: of the page.
        notebooks: executed notebooks, in order.
        headline: the table that comes first; its cells are text.
        reading: what the headline table says, in words.
        figure: a PNG under the headline table.
        responses: what :func:`browse` shows, after the notebooks.
        curves: what :func:`slider` shows, under the headline.
        excerpts: what else it shows.
    """
    table = ""
    if headline is not None:
        table = headline.rename_axis(columns=None).to_html(index=False, escape=True, border=0)
    picture = figure.read_bytes() if figure and figure.is_file() else b""
    page = rendered(
        _HERE / "report.html.j2",
        title=title,
        notebooks=[(notebook.stem, _cells(notebook)) for notebook in notebooks],
        headline=Markup(table),
        reading=reading,
        figure=base64.b64encode(picture).decode(),
        slider=Markup(slider(curves, excerpts) if curves is not None else ""),
        responses=Markup(browse(responses) if responses is not None else ""),
        clean=_clean,
        markdown=markdown2html,
    )
    with replacing(path) as draft:
        draft.write_text(page, encoding="utf-8")
