"""How figures look."""

import math
import pathlib
import textwrap
from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
from matplotlib import ticker  # noqa: E402

from diffstride.settings import METHODS  # noqa: E402

# Okabe and Ito's colours, which colour-blind readers can tell apart.
_METHODS = dict(
    zip(
        METHODS,
        ("#000000", "#009E73", "#D55E00", "#0072B2", "#56B4E9"),
        strict=True,
    )
)
_OTHER_METHODS = ("#CC79A7", "#E69F00", "#999999")
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
_DPI = 110
# Ticks of a logarithmic axis, the most there can be first.
_MANTISSAS = (
    (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8),
    (1, 1.5, 2, 3, 5, 7),
    (1, 2, 5),
    (1, 3),
    (1,),
)
_SETTINGS = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "lines.markersize": 5,
    "figure.constrained_layout.use": True,
}
plt.rcParams.update(_SETTINGS)


def method_color(method: str, methods: Sequence[str]) -> str:
    """Colour of a method.

    Args:
        method: its name.
        methods: all methods of the report.

    Returns:
        The same for a method of ours in every report.
    """
    if method in _METHODS:
        return _METHODS[method]
    others = [name for name in methods if name not in _METHODS]
    return _OTHER_METHODS[others.index(method) % len(_OTHER_METHODS)]


def headline(figure: plt.Figure, text: str) -> None:
    """Puts a statement over a figure, on as many lines as it takes."""
    width = int(figure.get_figwidth() * 11.5)
    figure.suptitle("\n".join(textwrap.wrap(text, width)), fontsize=11.5)


def key(
    figure: plt.Figure, entries: Sequence[tuple[str, str, str, str]]
) -> None:
    """A legend under the axes.

    Args:
        figure: where to.
        entries: text, colour, marker and line style of each.
    """
    handles = [
        plt.Line2D([], [], color=color, marker=marker, ls=line, label=text)
        for text, color, marker, line in entries
    ]
    longest = max(len(handle.get_label()) for handle in handles)
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=max(1, int(figure.get_figwidth() * 13 / (longest + 7))),
        frameon=False,
        columnspacing=1.5,
    )


def number(value: float) -> str:
    """A number to three digits, without an exponent up to a billion."""
    return f"{float(f'{value:.3g}'):,.9g}"


def log_ticks(axes: plt.Axes, which: str) -> None:
    """Puts an axis on a logarithmic scale with plain numbers on it."""
    getattr(axes, f"set_{which}scale")("log")
    axis = getattr(axes, f"{which}axis")
    low, high = sorted(getattr(axes, f"get_{which}lim")())
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


def save(figure: plt.Figure, path: pathlib.Path) -> None:
    """Writes a figure as PNG, the same bytes each time."""
    figure.savefig(path, dpi=_DPI)
    plt.close(figure)
