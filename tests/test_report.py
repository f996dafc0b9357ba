import nbformat
import pandas as pd

from cmrm_utils.report import write_report


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


def test_injected_parameters_are_left_out(tmp_path):
    cell = nbformat.v4.new_code_cell(
        "out = '/somewhere'", metadata={"tags": ["injected-parameters"]}
    )
    assert "/somewhere" not in page_of(tmp_path, cell)
