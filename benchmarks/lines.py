"""``make lines``: how large the module is, and whether it keeps to the house's bounds."""

import ast
import io
import sys
import tokenize
from dataclasses import dataclass
from pathlib import Path

import cmrm_utils

HOUSE = Path(cmrm_utils.__file__).parent
TOOL = ("engine", "methods")
"""Folders that belong to the tool, beside the files that lie directly in the module."""

BEFORE, HOUSE_LINES = 11226, 9877
"""Lines of code before the house was built and when it was finished, counted the same way.

What came since (the pretrained subject) brought capabilities, so the number is told, not bounded.
"""

_NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


@dataclass(frozen=True)
class Size:
    """A file's size.

    Attributes:
        path: of the file, relative to the module.
        lines: all of them.
        code: without blanks, comments and docstrings.
        longest: the name of its longest function, and its lines, docstring counted.
    """

    path: Path
    lines: int
    code: int
    longest: tuple[str, int]

    @property
    def in_tool(self) -> bool:
        """Whether the file belongs to the tool."""
        return len(self.path.parts) == 1 or self.path.parts[0] in TOOL


def measured(path: Path) -> Size:
    """The size of one file."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    texts = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    code = {
        line
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type not in _NO_CODE
        for line in range(token.start[0], token.end[0] + 1)
    }
    functions = [
        (node.name, (node.end_lineno or node.lineno) - node.lineno + 1)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    longest = max(functions, key=lambda each: each[1], default=("", 0))
    return Size(path.relative_to(HOUSE), len(text.splitlines()), len(code - texts), longest)


def bounds(sizes: list[Size]) -> dict[str, tuple[int, int]]:
    """What is bounded: its figure, and the most that it may be."""
    tool = [size for size in sizes if size.in_tool]
    core = [size for size in tool if size.path.parts[0] != "methods"]
    return {
        "lines of the tool without methods/": (sum(size.code for size in core), 3000),
        "flat files": (sum(len(size.path.parts) == 1 for size in sizes), 16),
        "lines of the longest file": (max(size.lines for size in sizes), 450),
        "lines of the longest function": (max(size.longest[1] for size in sizes), 60),
    }


def main() -> None:
    """Print each folder's size, what is bounded, and whatever is over its bound."""
    sizes = [measured(path) for path in sorted(HOUSE.rglob("*.py"))]
    folders = sorted({size.path.parent for size in sizes})
    for folder in folders:
        here = [size for size in sizes if size.path.parent == folder]
        name = "the flat files" if folder == Path() else f"{folder}/"
        print(f"{name:24} {len(here):3} files {sum(size.code for size in here):6} lines of code")
    whole = sum(size.code for size in sizes)
    print(f"lines of code: {whole}; {HOUSE_LINES} when the house was finished, {BEFORE} before it")
    over = 0
    for name, (figure, most) in bounds(sizes).items():
        over += figure > most
        print(f"{name:36} {figure:6}, at most {most}{'' if figure <= most else ': OVER'}")
    for size in sizes:
        if size.lines > 450:
            print(f"{size.path}: {size.lines} lines")
        if size.longest[1] > 60:
            print(f"{size.path}: {size.longest[0]} has {size.longest[1]} lines")
    sys.exit(bool(over))


if __name__ == "__main__":
    main()
