"""One HTML page of a run: the headline table, then every notebook; opens offline."""

import base64
import html
import re
from collections.abc import Sequence
from pathlib import Path

import bleach
import nbformat
import pandas as pd
from nbconvert.filters import markdown2html

from cmrm_utils.conditions import CONDITION_NAMES
from cmrm_utils.errors import InputError
from cmrm_utils.store import replacing

_STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #1a1a1a; background: #fff; }
h1, h2, h3 { line-height: 1.25; } nav a { margin-right: 1.2rem; }
img, svg { max-width: 100%; background: #fff; }
table { border: 0; border-collapse: collapse; font-size: .9rem; margin: 1rem 0; }
th, td { border: 0; border-bottom: 1px solid #ccc; padding: .25rem .7rem;
  text-align: left !important; }
pre { background: #f5f5f5; padding: .6rem .8rem; overflow-x: auto; font-size: .82rem; }
details.code summary { color: #666; cursor: pointer; font-size: .8rem; }
.jp-InputPrompt, .jp-OutputPrompt, .anchor-link, .prompt { display: none; }
details.fold summary { cursor: pointer; margin: .4rem 0; }
.sides { display: flex; gap: 1rem; } .sides div { flex: 1; min-width: 0; font-size: .9rem; }
.sides p { white-space: pre-wrap; overflow-wrap: anywhere; }
section { border-top: 3px solid #0072B2; margin-top: 3rem; }
""".strip()


_TAGS = {*bleach.ALLOWED_TAGS, "div", "span", "p", "pre", "br", "hr", "sub", "sup"}


_TAGS |= {"h1", "h2", "h3", "h4", "table", "thead", "tbody", "tr", "th", "td"}
"""What Markdown, and a cell's own HTML, may hold; anything else is shown as text."""


_PANDAS_STYLE = re.compile(r"<style scoped>.*?</style>", re.DOTALL)


_SPANS = ["rowspan", "colspan"]


_ATTRIBUTES = {"a": ["href", "title", "class"], "td": _SPANS, "th": [*_SPANS, "valign"]}


def _body(path: Path) -> str:
    """A notebook's cells as HTML: text and results plain, code folded away.

    Raises:
        InputError: it was cut short, by a kill while it was written.
    """
    try:
        notebook = nbformat.read(path, as_version=4)
    except ValueError as error:
        raise InputError(f"{path}: no whole notebook; run it again, or delete it") from error
    parts = []
    for cell in notebook.cells:
        if "injected-parameters" in cell.metadata.get("tags", []):
            continue
        if cell.cell_type != "code":
            parts.append(_clean(markdown2html(cell.source)))
            continue
        code = html.escape(cell.source)
        parts.append(f"<details class='code'><summary>code</summary><pre>{code}</pre></details>")
        parts += [_output(output) for output in cell.outputs]
    return "\n".join(parts)


def _clean(found: str) -> str:
    """HTML that shows and does nothing: what is not in :data:`_TAGS` becomes text."""
    return bleach.clean(found, tags=_TAGS, attributes=_ATTRIBUTES)


def _output(output: nbformat.NotebookNode) -> str:
    """A cell's result: a picture, a table, or escaped text."""
    data = output.get("data", {})
    if "image/png" in data:
        picture = html.escape(str(data["image/png"]))
        return f"<p><img alt='figure' src='data:image/png;base64,{picture}'></p>"
    if "text/html" in data:
        return _clean(_PANDAS_STYLE.sub("", str(data["text/html"])))
    if "text/markdown" in data:
        return f"<p>{html.escape(str(data['text/markdown']))}</p>"
    text = data.get("text/plain") or output.get("text") or "\n".join(output.get("traceback", []))
    return f"<pre>{html.escape(str(text))}</pre>"


def browse(rows: pd.DataFrame, *, most: int = 8) -> str:
    """Responses to read side by side: text only, own image unedited, and each edit.

    For each edit and task, folded by what the edit did to the outcome ("complied → refused"). All
    text is escaped and nothing needs a script.

    Args:
        rows: ``sample, task, setting, query, response, outcome``, one row a response; settings are
            named as :data:`cmrm_utils.conditions.CONDITION_NAMES`, all others are edits.
        most: samples shown of each fold; the fold says how many there are.

    Returns:
        HTML; empty where no sample was answered both with and without an edit.
    """
    asked = rows[rows["task"].isin(["harmful", "benign"])]
    answers = asked.drop_duplicates(["sample", "setting"]).set_index(["sample", "setting"])
    edits = [x for x in asked["setting"].unique() if x not in CONDITION_NAMES.values()]
    settings = [CONDITION_NAMES["none"], CONDITION_NAMES["own"], *edits]
    outcomes = answers["outcome"].unstack()
    parts = []
    for edit in edits if CONDITION_NAMES["own"] in outcomes else []:
        pairs = outcomes[[CONDITION_NAMES["own"], edit]].dropna()
        pairs.insert(0, "task", asked.groupby("sample")["task"].first())
        folds = []
        for (task, old, new), fold in pairs.groupby(list(pairs.columns)):
            some = fold.index[:most]
            cards = "".join(_card(answers.loc[[sample]], settings) for sample in some)
            folds.append(
                f"<details class='fold'><summary>{html.escape(f'{task}: {old} → {new}')} "
                f"({len(some)} of {len(fold)} shown)</summary>{cards}</details>"
            )
        if folds:
            parts.append(f"<h3>{html.escape(edit)}</h3>{''.join(folds)}")
    return "".join(parts)


def _card(answers: pd.DataFrame, settings: Sequence[str]) -> str:
    """One sample's query, and under it a column for each setting that it was answered in."""
    found = {setting: row for (_, setting), row in answers.iterrows()}
    cells = "".join(
        f"<div><b>{html.escape(setting)}</b> <i>{html.escape(found[setting]['outcome'])}</i>"
        f"<p>{html.escape(found[setting]['response'])}</p></div>"
        for setting in settings
        if setting in found
    )
    query = found[CONDITION_NAMES["own"]]["query"]
    return f"<p><b>{html.escape(query)}</b></p><div class='sides'>{cells}</div>"


def write_report(
    path: Path,
    title: str,
    notebooks: Sequence[Path],
    *,
    headline: pd.DataFrame | None = None,
    reading: str = "",
    figure: Path | None = None,
    responses: pd.DataFrame | None = None,
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
    """
    names = [html.escape(notebook.stem) for notebook in notebooks]
    links = " ".join(f"<a href='#{name}'>{name.replace('_', ' ')}</a>" for name in names)
    parts = [f"<h1>{html.escape(title)}</h1>", f"<nav>{links}</nav>"]
    if reading:
        parts.append(f"<p>{html.escape(reading)}</p>")
    if headline is not None:
        parts.append(headline.rename_axis(columns=None).to_html(index=False, escape=True, border=0))
    if figure and figure.is_file():
        picture = base64.b64encode(figure.read_bytes()).decode()
        parts.append(f"<p><img alt='headline figure' src='data:image/png;base64,{picture}'></p>")
    for name, notebook in zip(names, notebooks, strict=True):
        parts.append(f"<section id='{name}'>{_body(notebook)}</section>")
    if responses is not None and (shown := browse(responses)):
        parts[1] = parts[1].replace("</nav>", " <a href='#responses'>responses</a></nav>")
        parts.append(f"<section id='responses'><h2>Responses side by side</h2>{shown}</section>")
    page = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body>{''.join(parts)}</body></html>\n"
    )
    with replacing(path) as draft:
        draft.write_text(page, encoding="utf-8")
