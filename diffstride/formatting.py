"""Numbers and tables for people."""

import re
from collections.abc import Sequence


def human(number: float, unit: str = "") -> str:
    """Returns a number with a decimal prefix, such as `"12.3 MB"`."""
    # 999.95 of one prefix would be rounded to 1000.0.
    for prefix, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.99995 * factor:
            return f"{number / factor:.1f} {prefix}{unit}"
    return f"{number:.0f} {unit}".rstrip()


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lays out a table in Markdown, with `|` in cells escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |"
        for line in lines
    )


def harmless(text: str) -> str:
    """Takes the meaning from HTML and links in Markdown."""
    return re.sub(r"\](?=[(\[:])", r"\]", text.replace("<", "&lt;"))


def aligned(
    rows: Sequence[Sequence[str]], right: Sequence[int] = ()
) -> list[str]:
    """Lays out a table, a line a row; `right` lists right-aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines
