import re
from collections import Counter
from html.parser import HTMLParser

import nbformat
import pandas as pd
import pytest

from cmrm_utils import InputError
from cmrm_utils.jobs.execute import report
from cmrm_utils.jobs.report import browse, slider, write_report
from cmrm_utils.results.display import number_table


def notebook_of(tmp_path, *cells):
    path = tmp_path / "01_small.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=list(cells)), path)
    return path


def output(data=None, text=None):
    if text is not None:
        return nbformat.v4.new_output("stream", name="stdout", text=text)
    return nbformat.v4.new_output("display_data", data=data)


def page_of(tmp_path, cell, **kwargs):
    path = notebook_of(tmp_path, nbformat.v4.new_markdown_cell("# A *title*"), cell)
    write_report(tmp_path / "report.html", "The title", [path], **kwargs)
    return (tmp_path / "report.html").read_text()


def test_headline_comes_first_then_the_notebooks(tmp_path):
    cell = nbformat.v4.new_code_cell("print(1)", outputs=[output(text="a result")])
    headline = pd.DataFrame({"setting": ["own image"], "unsafe": ["50% <b>"]})
    page = page_of(tmp_path, cell, headline=headline, reading="Half are unsafe.")
    places = [
        page.index(x) for x in ("Half are unsafe.", "50% &lt;b&gt;", "<em>title</em>", "a result")
    ]
    assert places == sorted(places)
    assert re.search(r"<h1[^>]*>A <em>title</em>", page)
    assert "&lt;h1" not in page


def test_opens_offline(tmp_path):
    png = "iVBORw0KGgo="
    cell = nbformat.v4.new_code_cell("figure", outputs=[output({"image/png": png})])
    page = page_of(tmp_path, cell)
    assert f"data:image/png;base64,{png}" in page
    for outside in ("http://", "https://", "<script", "<link"):
        assert outside not in page


def test_what_a_model_says_is_text(tmp_path):
    evil = "<script>alert(1)</script>"
    frame = pd.DataFrame({"response": [evil]})
    cell = nbformat.v4.new_code_cell(
        f"x = '{evil}'",
        outputs=[
            output(text=evil),
            output({"text/plain": evil}),
            output({"text/html": frame.to_html(), "text/plain": str(frame)}),
        ],
    )
    page = page_of(tmp_path, cell, reading=evil)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 4


ATTACKS = (
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)>",
    "<a href='javascript:alert(1)'>x</a>",
    "'\"><iframe src=x></iframe>",
    "</p></section></body><style>*{display:none}</style>",
)


class Page(HTMLParser):
    """The tags of a page and their attributes, as a browser would read them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.links = Counter(), set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags[tag] += 1
        self.attributes |= {name for name, _ in attributes}
        self.links |= {value for name, value in attributes if name in ("href", "src")}


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_that_a_model_or_a_data_set_says_is_markup(tmp_path, attack):
    """In every place that it can reach: the page has the tags it has with harmless words."""

    def page_with(words):
        frame = pd.DataFrame({"response": [words], "image": [words], "kind": [words]})
        grouped = frame.assign(n=1).set_index(["kind", "image"])
        cell = nbformat.v4.new_code_cell(
            "code",
            outputs=[
                output(text=words),
                output({"text/plain": words}),
                output({"text/html": frame._repr_html_()}),
                output({"text/html": grouped._repr_html_()}),
                output({"text/markdown": words}),
                nbformat.v4.new_output("error", ename="E", evalue=words, traceback=[words]),
            ],
        )
        cell.source = words
        rows = [
            ["s", "harmful", setting, words, words, words]
            for setting in ("own image", "text only", words)
        ]
        rows = responses_of(*rows)
        return page_of(tmp_path, cell, headline=frame, reading=words, responses=rows)

    page, harmless = Page(page_with(attack)), Page(page_with("word"))
    assert page.tags == harmless.tags
    assert page.attributes == harmless.attributes
    assert page.links == harmless.links


@pytest.mark.parametrize("attack", ATTACKS)
def test_html_and_pictures_of_a_cell_do_nothing(tmp_path, attack):
    """A cell's own HTML, and Markdown, are cleaned, whatever printed them."""
    cell = nbformat.v4.new_code_cell(
        "code", outputs=[output({"text/html": attack}), output({"image/png": attack})]
    )
    path = notebook_of(tmp_path, nbformat.v4.new_markdown_cell(attack), cell)
    write_report(tmp_path / "report.html", "x", [path])
    page = Page((tmp_path / "report.html").read_text())
    assert not set(page.tags) & {"script", "iframe", "svg"}
    assert page.tags["style"] == page.tags["img"] == 1  # the page's own, and the picture
    assert not [name for name in page.attributes if name.startswith("on")]
    assert not [link for link in page.links if link.startswith("javascript")]


def test_tables_keep_their_shape(tmp_path):
    frame = pd.DataFrame({"a": ["x", "x"], "b": ["y", "z"], "n": [1, 2]}).set_index(["a", "b"])
    cell = nbformat.v4.new_code_cell("x", outputs=[output({"text/html": frame._repr_html_()})])
    page = page_of(tmp_path, cell)
    assert '<th rowspan="2" valign="top">x</th>' in page
    assert "<td>2</td>" in page
    assert "vertical-align" not in page  # pandas' own style sheet


def test_a_notebook_cut_short_is_named(tmp_path):
    path = notebook_of(tmp_path, nbformat.v4.new_markdown_cell("# A title"))
    path.write_text(path.read_text()[:50])
    with pytest.raises(InputError, match=r"01_small\.ipynb: no whole notebook"):
        write_report(tmp_path / "report.html", "x", [path])


def test_injected_parameters_are_left_out(tmp_path):
    cell = nbformat.v4.new_code_cell(
        "out = '/somewhere'", metadata={"tags": ["injected-parameters"]}
    )
    assert "/somewhere" not in page_of(tmp_path, cell)


EVIL = "<script>alert(1)</script> & 'more'"


def answer(sample, setting, outcome, response="Zib it.", task="harmful"):
    query = f"How do I zib {sample}?"
    return [sample, task, setting, query, response, outcome]


def responses_of(*rows):
    columns = ["sample", "task", "setting", "query", "response", "outcome"]
    return pd.DataFrame(list(rows), columns=columns)


ANSWERS = responses_of(
    answer("a<b", "text only", "refused", "I can't."),
    answer("a<b", "own image", "complied", EVIL),
    answer("a<b", "blank image", "complied", "not shown"),
    answer("a<b", "CMRM", "refused", "I won't."),
    answer("a<b", "other <i>", "complied", "Plon."),
    answer("c", "own image", "complied"),
    answer("c", "CMRM", "complied", "Morf."),
    answer("d", "own image", "complied", task="benign"),
    answer("d", "CMRM", "refused", "No.", task="benign"),
    answer("e", "own image", "complied", "left alone"),
    answer("f", "CMRM", "complied", "unpaired"),
    answer("g", "own image", "complied", "a question", task="visual"),
    answer("g", "CMRM", "complied", "a question", task="visual"),
)


def test_browse_groups_by_what_an_edit_did():
    page = browse(ANSWERS)
    one, other = page.split("<h3>other &lt;i&gt;</h3>")
    for words in (
        "harmful: complied → refused (1 of 1 shown)",
        "harmful: complied → complied (1 of 1 shown)",
        "benign: complied → refused (1 of 1 shown)",
    ):
        assert one.count(words) == 1
    assert other.count("<details") == 1
    assert "harmful: complied → complied (1 of 1 shown)" in other
    for absent in ("not shown", "left alone", "unpaired", "a question"):
        assert absent not in page
    # text only, unedited and every edit, side by side in this order
    card = one[one.index("How do I zib a&lt;b?") :]
    places = [card.index(x) for x in ("I can&#39;t.", "&lt;script&gt;", "I won&#39;t.", "Plon.")]
    assert places == sorted(places)


def test_browse_says_how_many_it_leaves_out():
    rows = [
        answer(f"s{i}", setting, "complied", f"{setting} {i}.")
        for setting in ("own image", "CMRM")
        for i in range(30)
    ]
    page = browse(responses_of(*rows), most=4)
    assert "(4 of 30 shown)" in page
    assert page.count("<b>CMRM</b>") == 4


def test_nothing_to_browse():
    assert browse(ANSWERS[ANSWERS["setting"] == "own image"]) == ""
    assert browse(ANSWERS[ANSWERS["setting"] == "CMRM"]) == ""
    assert browse(ANSWERS[:0]) == ""


def test_responses_end_the_report_as_text(tmp_path):
    cell = nbformat.v4.new_code_cell("1", outputs=[output(text="a result")])
    page = page_of(tmp_path, cell, responses=ANSWERS)
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; &#39;more&#39;" in page
    assert page.index("a result") < page.index("id='responses'") < page.index("complied → refused")
    assert "href='#responses'" in page
    assert "#responses" not in page_of(tmp_path, cell, responses=ANSWERS[:0])


def test_shaded_cells_and_folds_stay_and_other_styles_do_not(tmp_path):
    table = pd.DataFrame({"x": range(12)})
    page = number_table(table, full=12.0)._repr_html_()
    page += '<span style="position: fixed; background-color: red">all over</span>'
    cell = nbformat.v4.new_code_cell("x", outputs=[output({"text/html": page})])
    report = page_of(tmp_path, cell)
    assert "rgba(0, 114, 178, 0.05)" in report
    assert "<summary>2 more rows</summary>" in report
    assert "position" not in report.partition("all over")[0].rpartition("<span")[2]


def curves_of(method="CMRM", alphas=(0.0, 0.1)):
    columns = ["method", "alpha", "measure", "rate", "low", "high", "hits", "n"]
    rows = [[method, alpha, "refused", 0.5 + alpha, 0.4, 0.7, 5, 10] for alpha in alphas]
    return pd.DataFrame(rows, columns=columns)


def test_a_run_without_a_sweep_has_no_slider(tmp_path):
    cell = nbformat.v4.new_code_cell("1")
    assert slider(curves_of(alphas=(0.0,))) == ""
    assert slider(curves_of().assign(measure="something else")) == ""
    assert "id='alpha'" not in page_of(tmp_path, cell)
    page = page_of(tmp_path, cell, curves=curves_of(), reading="Half are refused.")
    places = [page.index(x) for x in ("Half are refused.", "id='alpha'", "id='01_small'")]
    assert places == sorted(places)


@pytest.mark.parametrize("attack", ATTACKS)
def test_names_and_excerpts_do_nothing_in_the_slider(attack):
    def page(words):
        rows = {"method": [words], "alpha": [0.0], "request": [words], "excerpt": [words]}
        return Page(slider(curves_of(words), pd.DataFrame(rows)))

    evil, harmless = page(attack), page("word")
    assert evil.tags == harmless.tags
    assert evil.attributes == harmless.attributes


@pytest.mark.parametrize(("exact", "told"), [(None, "answered"), ("complied", "complied")])
def test_what_is_complied_with_is_called_answered_without_an_exact_judge(tmp_path, exact, told):
    rows = ANSWERS.assign(trial="t", kind="harmful", keyword="refused")
    rows["exact"] = pd.Series([exact] * len(rows), dtype=object)
    (tmp_path / "tables").mkdir()
    rows.to_parquet(tmp_path / "tables" / "04_responses.parquet")
    report(tmp_path, [])
    assert f"benign: {told} → refused" in (tmp_path / "report.html").read_text()
