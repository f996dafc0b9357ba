"""Shaded tables and folded answers."""

import pandas as pd
import pytest

from cmrm_utils.results.display import Answers, number_table, rate_table

RATES = pd.DataFrame(
    [
        ("refused", "own", 0.25, 5),
        ("log-odds", "own", -1.23, None),
        ("refused", "a<b", 1.0, 20),
    ],
    columns=["measure", "image", "rate", "hits"],
)


def test_rates_are_in_per_cent_and_shaded_and_means_are_not():
    table = rate_table(RATES, "image", "measure", note="5 & 6")
    assert table.text.loc["own"].tolist() == ["25.0%", "-1.2"]
    assert table.text.loc["a<b"].tolist() == ["100.0%", ""]
    assert table.shares["refused"].tolist() == [0.25, 1.0]
    assert table.shares["log-odds"].isna().all()
    page = table._repr_html_()
    assert page.count("background-color") == 2
    assert "0.15)" in page  # a quarter of the darkest ground
    assert "own image" in page  # a condition by its label
    assert "a&lt;b" in page
    assert "a<b" not in page
    assert "5 &amp; 6" in page
    assert "25.0%" in repr(table)


def test_no_rows_give_an_empty_table():
    table = rate_table(RATES.head(0), "image", "measure")
    assert table.text.empty
    assert not table._repr_html_()


@pytest.mark.parametrize(("rows", "said"), [(2, None), (3, "1 more row<"), (5, "3 more rows<")])
def test_rows_past_the_most_are_behind_a_fold(rows, said):
    table = number_table(pd.DataFrame({"x": range(rows)}), most=2)
    page = table._repr_html_()
    assert ("<details>" in page) == bool(said)
    before, _, _ = page.partition("<details>")
    assert before.count("<tr") == 3
    assert said is None or said in page


def test_numbers_are_shaded_by_size_and_missing_ones_are_left_open():
    table = number_table(pd.DataFrame({"x": [-0.5, float("nan")]}), full=1.0)
    assert table.text["x"].tolist() == ["-0.50", ""]
    assert table.shares["x"].iloc[0] == 0.5
    assert table._repr_html_().count("background-color") == 1
    assert "background-color" not in number_table(pd.DataFrame({"x": [1.0]}))._repr_html_()


def test_a_column_of_text_beside_others():
    table = number_table(pd.DataFrame({"x": [1.0]}, index=["a"]), full=1.0)
    wider = table.beside("dose", pd.Series({"a": "0.01"}))
    assert wider.text.columns.tolist() == ["dose", "x"]
    assert wider._repr_html_().count("background-color") == 1
    assert table.text.columns.tolist() == ["x"]
    none = table.beside("dose", pd.Series({"b": "0.01"}))
    assert none.text["dose"].tolist() == [""]
    assert "0.01" not in none._repr_html_()


def test_answers_are_folded():
    answers = Answers({"1. Is it <so>?": (True, "2 > 1."), "2. Or not?": (False, "No.")})
    page = answers._repr_html_()
    assert page.count("<details>") == 2
    assert "&lt;so&gt;" in page
    assert "<strong>Yes.</strong> 2 &gt; 1." in page
