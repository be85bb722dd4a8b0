"""Numbers and tables for people."""

import re
from collections.abc import Sequence
from typing import Any


def human(number: float, unit: str = "") -> str:
    """Returns a number with a decimal prefix, such as `"12.3 MB"`."""
    # 999.95 of one prefix would be rounded to 1000.0.
    for prefix, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.99995 * factor:
            return f"{number / factor:.1f} {prefix}{unit}"
    return f"{number:.0f} {unit}".rstrip()


def cutoffs(
    layers: Sequence[dict[str, Any]], steps: Sequence[float]
) -> list[str]:
    """Returns up to what frequency each pooling of a sound lets maps pass.

    A map of n frames that is pooled with stride s keeps up to n / (2 s) cycles
    over its length, which is that of the first map.

    Args:
        layers: states of pooling layers, those of a summary, in depth order.
        steps: seconds of a frame, and mel channels of a row, of the first map.
    """
    texts = []
    for layer in layers:
        hertz, cycles = (
            size / (2 * stride * first * step)
            for size, stride, first, step in zip(
                layer["input_size"],
                layer["strides"],
                layers[0]["input_size"],
                steps,
                strict=True,
            )
        )
        texts.append(f"{hertz:.1f} Hz x {cycles:.3f} per mel channel")
    return texts


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
