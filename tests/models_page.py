"""The table of families in docs/models.md: each cell is what a test found.

Tests tell their cells (the fixture ``tell``). A cell that differs from the page fails the test;
with ``--write-models`` the page's table is written instead, if all tests passed. Cells of tests
that did not run stay as they are.
"""

from cmrm_utils.paths import ROOT

PAGE = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- families -->\n", "<!-- /families -->"
COLUMNS = (
    "family",
    "way",
    "states",
    "at other tokens",
    "shift",
    "responses",
    "`apply`",
    "batch = alone",
    "baking",
    "needs",
)


def read():
    """The page's cells: by family, then by column."""
    table = PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    return {row[0]: dict(zip(lines[0], row, strict=True)) for row in lines[2:]}


def write(found):
    """Put the cells that were found into the page, families in order of their names."""
    rows = read()
    for (family, column), text in found.items():
        rows.setdefault(family, {"family": family})[column] = text
    lines = [COLUMNS, ["---"] * len(COLUMNS)]
    lines += [[rows[name].get(column, "") for column in COLUMNS] for name in sorted(rows)]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(before + BEGIN + table + END + rest.split(END)[1], encoding="utf-8")
