"""The report's slider, moved in a real browser."""

import pandas as pd
import pytest
from browser import browser
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from cmrm_utils.jobs.report import write_report
from cmrm_utils.results.text import percent

ALPHAS = {"CMRM dataset": (0.0, 0.05, 0.2), "CMRM sample": (0.0, 0.2)}
RATES = {"refused": 0.9, "answered": 0.06, "broken": 0.04, "benign answered": 0.98}


def made_up():
    """A sweep in which every value differs from every other."""
    rows = []
    for i, (method, alphas) in enumerate(ALPHAS.items()):
        for alpha in alphas:
            for measure, rate in RATES.items():
                value = rate * (1 - alpha - i / 10)
                rows.append((measure, method, alpha, value, value - 0.02, value + 0.02, 10, 100))
            odds = 4 - 20 * alpha - i
            rows.append(("log-odds", method, alpha, odds, odds - 1, odds + 1, None, 100))
    columns = ["measure", "method", "alpha", "rate", "low", "high", "hits", "n"]
    return pd.DataFrame(rows, columns=columns)


EXCERPTS = pd.DataFrame(
    [
        ("CMRM dataset", 0.0, "How do I boil an egg?", "Put it in water …"),
        ("CMRM dataset", 0.05, "How do I boil an egg?", "Put it, put it …"),
    ],
    columns=["method", "alpha", "request", "excerpt"],
)


def stored(method, alpha):
    rows = made_up()
    rows = rows[(rows["method"] == method) & (rows["alpha"] == alpha)]
    return {row["measure"]: percent(row) for _, row in rows.iterrows()}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The report, opened as a file."""
    folder = tmp_path_factory.mktemp("page")
    write_report(folder / "report.html", "x", [], curves=made_up(), excerpts=EXCERPTS)
    with browser(folder / "profile") as driver:
        driver.get((folder / "report.html").as_uri())
        yield driver


def shown(page):
    rows = page.find_elements(By.CSS_SELECTOR, "#alpha tr[data-measure]")
    return {
        row.get_attribute("data-measure"): row.find_element(By.CLASS_NAME, "shown").text
        for row in rows
    }


def test_the_slider_shows_the_stored_values(page):
    slider = page.find_element(By.ID, "alpha-slider")
    assert page.find_element(By.CSS_SELECTOR, "label[for=alpha-slider]").text == "Alpha"
    for place, alpha in enumerate(ALPHAS["CMRM dataset"]):
        if place:
            slider.send_keys(Keys.ARROW_RIGHT)
        assert page.find_element(By.ID, "alpha-shown").text == f"{alpha:g}"
        assert slider.get_attribute("aria-valuetext") == f"{alpha:g}"
        assert shown(page) == stored("CMRM dataset", alpha)
        kept = EXCERPTS.set_index("alpha")["excerpt"].to_dict()
        assert page.find_element(By.ID, "excerpt").text.strip('“”"') == kept.get(
            alpha, "(not kept)"
        )
    # Another method, by the keyboard: the alpha stays.
    page.find_element(By.CSS_SELECTOR, "input[name=method]").send_keys(Keys.ARROW_DOWN)
    assert page.find_element(By.ID, "alpha-shown").text == "0.2"
    assert shown(page) == stored("CMRM sample", 0.2)
    slider.send_keys(Keys.HOME)
    assert shown(page) == stored("CMRM sample", 0.0)


def test_dots_lie_on_their_intervals(page):
    slider = page.find_element(By.ID, "alpha-slider")
    slider.send_keys(Keys.END)
    for row in page.find_elements(By.CSS_SELECTOR, "#alpha tr[data-measure]"):
        place = "const b = arguments[0].querySelector(arguments[1]).style; return [b.left, b.width]"
        (point, _), (low, width) = (
            [float(x.removesuffix("%") or 0) for x in page.execute_script(place, row, name)]
            for name in (".point", ".reach")
        )
        assert 0 <= low < point < low + width <= 100


def test_it_is_read_on_dark_and_light_pages_and_needs_no_network(page):
    colours = set()
    for scheme in ("light", "dark"):
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        look = "const s = getComputedStyle(document.body); return s.color + s.backgroundColor"
        colours.add(page.execute_script(look))
    assert len(colours) == 2
    asked = "return performance.getEntriesByType('resource').map((each) => each.name)"
    assert page.execute_script(asked) == []
    assert not [log for log in page.get_log("browser") if log["level"] == "SEVERE"]
