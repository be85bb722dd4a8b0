"""How figures look."""

import itertools
import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import pandas as pd  # noqa: E402
from matplotlib import ticker  # noqa: E402

from diffstride.settings import METHODS, RIVALS  # noqa: E402

# Okabe and Ito's colours, which colour-blind readers can tell apart.
_COLORS = ("#000000", "#009E73", "#D55E00", "#0072B2", "#56B4E9")
# Rivals have dashed lines and hollow markers besides.
_RIVALS = (
    *("#882255", "#332288", "#AA4499", "#117733"),
    *("#999933", "#B8860B", "#CC6677", "#44AA99"),
)
_METHODS = dict(zip(METHODS, _COLORS + _RIVALS, strict=True))
_OTHERS = ("#CC79A7", "#E69F00", "#999999")
FILLS = ("full", "none")
SERIES = (
    ("#0072B2", "o"),
    ("#D55E00", "s"),
    ("#009E73", "^"),
    ("#CC79A7", "D"),
    ("#E69F00", "v"),
    ("#56B4E9", "P"),
    ("#000000", "X"),
    ("#999999", "*"),
)
START = "#777777"
BAR = "#bbbbbb"
EXPECTED = "#F0E442"
# Ticks of a logarithmic axis, the most there can be first.
_MANTISSAS = (
    (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8),
    (1, 1.5, 2, 3, 5, 7),
    (1, 2, 5),
    (1, 3),
    (1,),
)
plt.rcParams.update(
    {
        "font.size": 10,
        "axes.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "legend.frameon": False,
        "lines.markersize": 5,
        "figure.constrained_layout.use": True,
        "savefig.dpi": 110,
        "text.parse_math": False,
    }
)


def method_colors(methods: pd.Series) -> dict[str, str]:
    """Colours of all methods of a report; ours have the same in each."""
    others = methods.cat.categories.difference(_METHODS, sort=False)
    return dict(zip(others, itertools.cycle(_OTHERS), strict=False)) | _METHODS


def method_line(method: str) -> str:
    """The line style of a method."""
    return "--" if method in RIVALS else "-"


def method_fill(method: str) -> str:
    """The fill style of a method's markers."""
    return "none" if method in RIVALS else "full"


def panels(
    count: int, columns: int, width: float, height: float, **options: bool
) -> tuple[plt.Figure, Sequence[plt.Axes]]:
    """A figure with panels of a size in inches, which share their x axis."""
    rows = -(-count // columns)
    figure, grid = plt.subplots(
        *(rows, columns),
        figsize=(width * columns, height * rows + 0.6),
        sharex=True,
        squeeze=False,
        **options,
    )
    for axes in grid.flat[count:]:
        axes.set_visible(False)
    return figure, grid.flat[:count]


def series(values: Iterable[Any]) -> dict[Any, tuple[str, str]]:
    """Colours and markers of some values."""
    return dict(zip(values, itertools.cycle(SERIES), strict=False))


def title(
    figure: plt.Figure,
    text: str,
    entries: Sequence[tuple[str, str, str, str]] = (),
) -> None:
    """Puts a statement over a figure, and a legend under it.

    An entry is text, colour, marker and line style.
    """
    width = figure.get_figwidth()
    lines = textwrap.wrap(text, int(width * 11.5))
    figure.suptitle("\n".join(lines), fontsize=11.5)
    if not entries:
        return
    handles = [
        plt.Line2D([], [], color=color, marker=marker, ls=line, label=label)
        for label, color, marker, line in entries
    ]
    longest = max(len(label) for label, *_ in entries)
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=max(1, int(width * 13 / (longest + 7))),
        columnspacing=1.5,
    )


def number(value: float) -> str:
    """A number to three digits, without an exponent up to a billion."""
    return f"{float(f'{value:.3g}'):,.9g}"


def between(values: Sequence[float]) -> str:
    """The range of some numbers."""
    return " to ".join(dict.fromkeys(map(number, (min(values), max(values)))))


def log_ticks(axes: plt.Axes, which: str) -> None:
    """Puts an axis on a logarithmic scale with plain numbers on it."""
    axes.set(**{f"{which}scale": "log"})
    axis = getattr(axes, f"{which}axis")
    low, high = sorted(axis.get_view_interval())
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
    for mantissas in _MANTISSAS:
        ticks = [m * 10.0**e for e in exponents for m in mantissas]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= 7:
            break
    if 2 < len(ticks) <= 7:
        axis.set_major_locator(ticker.FixedLocator(ticks))
    else:
        axis.set_major_locator(ticker.MaxNLocator(5))
    axis.set_major_formatter(ticker.FuncFormatter(lambda x, _: number(x)))
    axis.set_minor_locator(ticker.NullLocator())
