"""How figures look, and where labels find room."""

import itertools
import math
import pathlib
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from diffstride.sweep.grid import METHODS  # noqa: E402
from matplotlib import colors, ticker  # noqa: E402

# Okabe and Ito's colours, which colour-blind readers can tell apart.
_METHODS = dict(
    zip(
        METHODS,
        (
            ("#000000", "s"),
            ("#009E73", "D"),
            ("#D55E00", "o"),
            ("#0072B2", "^"),
            ("#56B4E9", "v"),
        ),
        strict=True,
    )
)
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
_DPI = 120
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
    # Without it ids in the SVG differ from run to run.
    "svg.hashsalt": "diffstride",
}
plt.rcParams.update(_SETTINGS)


class Label(NamedTuple):
    """A text that is to stand beside what it names.

    Attributes:
        text: the text.
        color: its colour.
        anchors: points beside which it may stand, the best first, in the units
            of the axes.
        size: of the font, in points.
    """

    text: str
    color: str
    anchors: Sequence[tuple[float, float]]
    size: float = 10


def method_style(method: str, methods: Sequence[str]) -> tuple[str, str]:
    """Colour and marker of a method.

    Args:
        method: its name.
        methods: all methods of the report.

    Returns:
        The same for a method of ours in every report.
    """
    if method in _METHODS:
        return _METHODS[method]
    others = [name for name in methods if name not in _METHODS]
    return (("#CC79A7", "P"), ("#E69F00", "X"), ("#999999", "*"))[
        others.index(method) % 3
    ]


def ink(color: str) -> str:
    """A colour dark enough for text."""
    channels = np.array(colors.to_rgb(color))
    return colors.to_hex(channels * min(1.0, 1.3 / (channels.sum() + 1e-9)))


def headline(figure: plt.Figure, text: str) -> None:
    """Puts a statement over a figure, on as many lines as it takes."""
    width = int(figure.get_figwidth() * 12.5)
    figure.suptitle("\n".join(textwrap.wrap(text, width)), fontsize=11.5)


def key(figure: plt.Figure, entries: Sequence[tuple[str, str, str]]) -> None:
    """A line of markers and their names, at the bottom.

    Args:
        figure: where to.
        entries: text, colour and marker of each; the marker `_` is a bar, and
            an empty one none.
    """
    handles = [
        plt.Line2D(
            *([], []),
            color=color,
            marker="" if marker == "_" else marker,
            ls="-" if marker == "_" else "",
            lw=2.5,
            label=text,
        )
        for text, color, marker in entries
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(len(handles), 6),
        frameon=False,
        handlelength=1.5,
        handletextpad=0.4,
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
    ticks = [_ticks(low, high, mantissas) for mantissas in _MANTISSAS]
    few = [some for some in ticks if len(some) <= 7]
    if few and len(few[0]) > 2:
        axis.set_major_locator(ticker.FixedLocator(few[0]))
    else:
        axis.set_major_locator(ticker.MaxNLocator(5))
    axis.set_major_formatter(ticker.FuncFormatter(lambda x, _: number(x)))
    axis.set_minor_locator(ticker.NullLocator())


def _ticks(low: float, high: float, mantissas: Sequence[float]) -> list[float]:
    """Numbers with one of the given mantissas, between two others."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
    numbers = [m * 10.0**e for e in exponents for m in mantissas]
    return [x for x in numbers if low <= x <= high]


def label_ends(
    axes: plt.Axes, ends: Sequence[tuple[str, str, float]], size: float = 9.5
) -> None:
    """Writes names at the right of lines, apart, each joined to its line.

    Args:
        axes: linear in y.
        ends: text, colour and last value of each line.
        size: of the font, in points.
    """
    low, high = axes.get_ylim()
    points = axes.figure.get_figheight() * 72 * 0.75
    gap = 1.25 * size / points * (high - low)
    order = sorted(range(len(ends)), key=lambda i: ends[i][2])
    wanted = [ends[i][2] for i in order]
    for i, y in zip(order, spread(wanted, gap, low, high), strict=True):
        text, color, value = ends[i]
        axes.annotate(
            text,
            xy=(1.0, value),
            xytext=(1.04, y),
            xycoords=axes.get_yaxis_transform(),
            textcoords=axes.get_yaxis_transform(),
            va="center",
            fontsize=size,
            color=ink(color),
            arrowprops={
                "arrowstyle": "-",
                "color": color,
                "lw": 0.7,
                "shrinkA": 0,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
            annotation_clip=False,
        )


def spread(
    wanted: Sequence[float], gap: float, low: float, high: float
) -> list[float]:
    """Positions at least `gap` apart, near the wanted ones.

    Args:
        wanted: in ascending order.
        gap: least distance.
        low: least position, as far as there is room.
        high: largest position, likewise.

    Returns:
        One position for each, in the same order.
    """
    # Neighbours that are too close merge into a block about their mean.
    blocks: list[list[float]] = []
    for value in wanted:
        blocks.append([value])
        while len(blocks) > 1 and _top(blocks[-2], gap, low, high) > (
            _bottom(blocks[-1], gap, low, high) - gap
        ):
            last = blocks.pop()
            blocks[-1] += last
    return [
        _bottom(block, gap, low, high) + gap * i
        for block in blocks
        for i in range(len(block))
    ]


def _bottom(block: list[float], gap: float, low: float, high: float) -> float:
    length = gap * (len(block) - 1)
    bottom = sum(block) / len(block) - length / 2
    return max(min(bottom, high - length), low)


def _top(block: list[float], gap: float, low: float, high: float) -> float:
    return _bottom(block, gap, low, high) + gap * (len(block) - 1)


def place_labels(axes: plt.Axes, labels: Sequence[Label]) -> None:
    """Writes labels beside their anchors, where they cover least.

    Call it last: what is drawn later, or changes the limits, is not considered.

    Args:
        axes: with all data drawn.
        labels: the labels, the most important first.
    """
    figure = axes.figure
    figure.canvas.draw()
    obstacles = _pixels(axes)
    frame = axes.get_window_extent()
    placed: list[tuple[float, float, float, float]] = []
    for label in labels:
        text = axes.text(
            0, 0, label.text, fontsize=label.size, color=ink(label.color)
        )
        extent = text.get_window_extent()
        text.remove()
        size = (extent.width, extent.height)
        places = [
            (_badness(box, obstacles, placed, frame) + far + 4 * rank, box, xy)
            for rank, xy in enumerate(label.anchors)
            for box, far in _boxes(axes.transData.transform(xy), size)
        ]
        _, box, xy = min(places, key=lambda place: place[0])
        placed.append(box)
        _write(axes, label, box, xy)


def _boxes(at: Any, size: tuple[float, float]) -> list[tuple[Any, float]]:
    """Places for a text about a point, and how unwelcome they are."""
    width, height = size
    boxes = []
    for distance in (9, 16, 26, 40, 60, 85):
        for turn in range(16):
            angle = math.pi * turn / 8
            x = at[0] + distance * math.cos(angle)
            y = at[1] + distance * math.sin(angle)
            x += width / 2 * (_sign(math.cos(angle)) - 1)
            y += height / 2 * (_sign(math.sin(angle)) - 1)
            boxes.append(((x, y, x + width, y + height), distance / 4))
    return boxes


def _sign(value: float) -> int:
    return 0 if abs(value) < 1e-9 else int(math.copysign(1, value))


def _badness(
    box: tuple[float, float, float, float],
    obstacles: Any,
    placed: Sequence[tuple[float, float, float, float]],
    frame: Any,
) -> float:
    left, bottom, right, top = box
    x, y = obstacles[:, 0], obstacles[:, 1]
    covered = (
        (x > left - 4) & (x < right + 4) & (y > bottom - 3) & (y < top + 3)
    )
    score = 5.0 * covered.sum()
    for other in placed:
        apart = (
            left > other[2] + 4
            or right < other[0] - 4
            or bottom > other[3] + 2
            or top < other[1] - 2
        )
        score += 0 if apart else 1e4
    outside = (
        max(frame.x0 - left, 0)
        + max(right - frame.x1, 0)
        + max(frame.y0 - bottom, 0)
        + max(top - frame.y1, 0)
    )
    return score + 50 * outside


def _pixels(axes: plt.Axes) -> Any:
    """Points of all that is drawn, lines sampled."""
    points = [np.zeros((0, 2))]
    segments = [
        line.get_xydata()
        for line in axes.lines
        if line.get_transform() == axes.transData
    ]
    for collection in axes.collections:
        if hasattr(collection, "get_segments"):
            segments += collection.get_segments()
        else:
            offsets = np.asarray(collection.get_offsets(), float)
            points.append(axes.transData.transform(offsets))
    for data in segments:
        data = np.asarray(data, float)
        data = axes.transData.transform(data[np.isfinite(data).all(axis=1)])
        points.append(data)
        for start, stop in itertools.pairwise(data):
            steps = max(int(np.hypot(*(stop - start)) // 6), 1)
            share = np.linspace(0, 1, steps + 1)[:, None]
            points.append(start + share * (stop - start))
    return np.concatenate(points)


def _write(
    axes: plt.Axes,
    label: Label,
    box: tuple[float, float, float, float],
    anchor: tuple[float, float],
) -> None:
    at = axes.transData.transform(anchor)
    # Offsets in points keep their place at any resolution.
    scale = 72 / axes.figure.dpi
    near = np.hypot(
        max(box[0] - at[0], at[0] - box[2], 0),
        max(box[1] - at[1], at[1] - box[3], 0),
    )
    line = {"arrowstyle": "-", "color": label.color, "lw": 0.7, "shrinkB": 3}
    axes.annotate(
        label.text,
        xy=anchor,
        xytext=((box[0] - at[0]) * scale, (box[1] - at[1]) * scale),
        textcoords="offset points",
        fontsize=label.size,
        color=ink(label.color),
        arrowprops={**line, "shrinkA": 1} if near > 17 else None,
        zorder=5,
    )


def remove(folder: pathlib.Path, stem: str) -> None:
    """Takes away a figure that an earlier report left."""
    for suffix in ("png", "svg"):
        (folder / f"{stem}.{suffix}").unlink(missing_ok=True)


def save(figure: plt.Figure, folder: pathlib.Path, stem: str) -> None:
    """Writes a figure as PNG and SVG, the same bytes each time."""
    figure.savefig(folder / f"{stem}.png", dpi=_DPI)
    figure.savefig(folder / f"{stem}.svg", metadata={"Date": None})
    plt.close(figure)
