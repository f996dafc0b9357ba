"""The README and the site: short enough, true to the stored tables, and without a dead link."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from benchmarks import example
from cmrm_utils.jobs.publish import headline, refusals
from cmrm_utils.paths import ROOT, STORED
from cmrm_utils.results.text import markdown_table
from cmrm_utils.store import read_csv, read_json

README = ROOT / "README.md"
LINK = re.compile(r"(?<!`)\[[^\]]*\]\(([^)\s]+)\)")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site; a warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going"]
    done = subprocess.run(
        [*command, "-c", "docs", ".", str(folder)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder


class Page(HTMLParser):
    """The ids of an HTML page, and what it links to and loads."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.loaded = set(), [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.ids |= {attributes[name] for name in ("id", "name") if attributes.get(name)}
        if tag == "a" and attributes.get("href"):
            self.links.append(attributes["href"])
        elif tag in ("img", "script", "link", "source"):
            name = "href" if tag == "link" else "src"
            if attributes.get(name) and attributes.get("rel") != "canonical":
                self.loaded.append(attributes[name])


def dead_links(folder):
    """Relative links of a site's pages that lead nowhere, each with its page."""
    pages = {path.resolve(): Page(path) for path in folder.rglob("*.html")}
    dead = []
    for path, page in pages.items():
        for link in (*page.links, *page.loaded):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment)
            known = pages[target].ids if target in pages else set()
            if not target.is_file() or (anchor and target in pages and anchor not in known):
                dead.append(f"{path.relative_to(folder.resolve())}: {link}")
    return dead


def test_the_page_on_the_code_is_short():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 80


def test_no_link_of_the_site_is_dead(site):
    assert len(list(site.rglob("*.html"))) > 20
    assert dead_links(site) == []


def test_a_dead_link_is_found(tmp_path):
    (tmp_path / "a.html").write_text('<p id="x"><a href="b.html#y">b</a> <a href="#x">x</a>')
    (tmp_path / "b.html").write_text('<a href="c.html">c</a> <a href="a.html#x">a</a>')
    assert sorted(dead_links(tmp_path)) == ["a.html: b.html#y", "b.html: c.html"]


def test_the_site_needs_no_network(site):
    loaded = [
        (path.name, source)
        for path in site.rglob("*.html")
        for source in Page(path).loaded
        if urlsplit(source).netloc
    ]
    assert loaded == []


def test_every_relative_link_of_the_readme_leads_somewhere():
    links = [link for link in LINK.findall(README.read_text(encoding="utf-8")) if "://" not in link]
    assert len(links) > 20
    for link in links:
        name, _, anchor = link.partition("#")
        assert (ROOT / name).is_file(), link
        if anchor:
            assert anchor in anchors((ROOT / name).read_text(encoding="utf-8")), link


def anchors(text):
    """What links can name in a page: its headings as GitHub spells them."""
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


def test_the_readme_is_short():
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 140
    assert max(map(len, lines)) <= 140


def test_minutes_to_read_are_those_that_the_notebooks_say():
    rows = re.findall(r"\(notebooks/(\S+)\) \|.*\| (\d+) \|$", README.read_text(), re.MULTILINE)
    assert len(rows) == 12
    for name, minutes in rows:
        said = re.findall(r"(\d+) minutes to read", (ROOT / "notebooks" / name).read_text())
        assert said in ([], [minutes]), name


def section(path: Path, name: str) -> str:
    text = path.read_text(encoding="utf-8")
    return text.partition(f"<!-- {name} -->\n")[2].partition(f"<!-- /{name} -->")[0]


def test_the_headline_tables_are_the_stored_ones():
    table = headline(read_csv(STORED / "smollm2_headline.csv"))
    assert section(ROOT / "docs" / "findings.md", "headline") == markdown_table(table)
    assert section(README, "headline") == markdown_table(refusals(table))


def test_the_example_is_the_stored_one_and_short():
    results = read_json(example.RESULTS)
    assert section(README, "example") == example.text(results)
    answers = [*results["of the request"], *results["of the question"]]
    assert all(len(answer.removesuffix(" …").split()) <= example.WORDS for answer in answers)
    chosen, strongest = (float(name.split()[-1]) for name in results["asked"][-2:])
    assert (chosen, strongest) == (example.chosen_alpha(), example.STRONGEST)


def test_how_good_the_judge_is_said_as_stored():
    """The table of docs/judges.md: models over all prompts and over those held back."""
    page = (ROOT / "docs/judges.md").read_text(encoding="utf-8")
    stored = read_csv(STORED / "judge_agreement.csv").set_index(["judge", "rows"]).loc["keyword"]
    names = {"gpt4": "gpt4", "llama2orig": "llama2orig", "mistralinstruct": "mistralinstruct"}
    names |= {"gpt4, held-back prompts": "gpt4", "developed, held-back prompts": "these two"}
    for name, said in names.items():
        row = stored.loc[name]
        prompts = "held back" if name.endswith("prompts") else "all"
        found = f"{row.refusals:.1%} [{row.low * 100:.1f}, {row.high * 100:.1f}]"
        assert (
            f"| {said} | {prompts} | {found} of {row.n_refusals:.0f} | "
            f"{row.false_alarms:.1%} of {row.n_complied:.0f} | {row.kappa:.2f} |"
        ) in page
