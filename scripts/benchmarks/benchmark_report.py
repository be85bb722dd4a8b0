"""Tables and a picture of what `benchmark.py` has measured."""

import pathlib
from collections.abc import Callable, Iterable
from typing import Any

from diffstride.formatting import markdown

# The rows of one input, by contender; and several of those, by their title.
Rows = dict[str, dict[str, Any]]
Cases = dict[str, Rows]

FFT_FORM = "FFT form"
# Contenders: the forms of the imaginary part, and the least a network takes.
FORMS = ("outer, imaginary part low rank", "outer, imaginary part whole")
FLOOR = "outer's floor: slices"
# Okabe and Ito's colours, which colour-blind readers can tell apart.
_STYLES = {
    FFT_FORM: ("#999999", "s"),
    "outer": ("#D55E00", "o"),
    "inner": ("#0072B2", "o"),
    "straight-through": ("#56B4E9", "v"),
    "FixedSpectralPooling": ("#009E73", "D"),
    "strided convolution": ("#000000", "x"),
    "average pooling": ("#CC79A7", "+"),
}


def tables(results: dict[str, Any]) -> str:
    """Lays out results as Markdown.

    Args:
        results: the content of a results file.

    Returns:
        Tables: layers by size, the same relative to the FFT form, the form of
        the imaginary part, networks.
    """
    parts = [_heading(results)]
    others: Cases = {}
    keys = ("data_format", "stride", "channels")
    for (data_format, stride, channels), rows in _grouped(
        results["layer"], lambda row: tuple(row[key] for key in keys)
    ).items():
        cases = {
            title: {row["contender"]: row for row in group}
            for title, group in _grouped(
                rows, lambda row: f"{row['size']} ({row['batch']})"
            ).items()
        }
        # Where only a size or two were measured they share a table, below.
        if len(cases) > 2:
            title = f"{data_format}, {channels} channels, stride {stride:g}"
            parts += _layer_tables(title, cases)
            continue
        for title, case in cases.items():
            size, _ = title.split()
            title = f"{size} x {channels}, stride {stride:g}"
            title += f", {data_format}" if title in others else ""
            others[title] = case
    if others:
        parts += [
            "**Other channels and strides** (size x channels): forward + "
            "backward relative to the FFT form",
            _table(others, _relative, _compared(others)),
        ]
    networks = _grouped(results["network"], lambda row: row["data_format"])
    for rows in networks.values():
        parts += _network_table(rows)
    return "\n\n".join(parts)


def nanoseconds(row: dict[str, Any]) -> float:
    """Returns the time of a layer, forward and backward, per input value."""
    values = row["batch"] * row["size"] ** 2 * row["channels"]
    return 1e6 * row["backward_ms"]["median"] / values


def plot(results: dict[str, Any], picture: str) -> None:
    """Draws how the cost of a layer grows with size and with channels.

    Args:
        results: the content of a results file.
        picture: where to write the picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    data_format = results["layer"][0]["data_format"]
    rows = [
        row
        for row in results["layer"]
        if row["stride"] == 2 and row["data_format"] == data_format
    ]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
    _curves(left, [row for row in rows if row["channels"] == 64], "size")
    left.set(xlabel="height and width of the map (64 channels)")
    _curves(right, [row for row in rows if row["size"] == 32], "channels")
    right.set(xlabel="channels (maps of 32 x 32)")
    right.legend(
        frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9
    )
    environment = results["environment"]
    figure.suptitle(
        f"Cost of a layer at stride 2: {environment['backend']} "
        f"{environment['version']}, {environment['device']}, {data_format}",
        fontsize=10,
    )
    figure.tight_layout()
    pathlib.Path(picture).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)


def _heading(results: dict[str, Any]) -> str:
    environment = results["environment"]
    return (
        f"{environment['backend']} {environment['version']}, Keras "
        f"{environment['keras']}, {environment['device']}, {results['dtype']}; "
        f"{results['seconds']} s in all."
    )


def _layer_tables(title: str, cases: Cases) -> list[str]:
    """Times, the same relative to the FFT form, and memory where measured."""
    names = [FFT_FORM, *_compared(cases)]
    parts = [
        f"**Layers, {title}**: forward / forward + backward in ms, by height "
        "and width (batch)",
        _table(cases, _times, names),
        "The same, forward + backward, relative to the FFT form; last, which "
        "form of the imaginary part is cheaper (low rank / whole)",
        _table(cases, _relative, [*names[1:], "*low rank / whole*"]),
    ]
    measured = {
        title: rows
        for title, rows in cases.items()
        if any(row.get("backward_mb") is not None for row in rows.values())
    }
    if measured:
        parts += [
            "Peak memory of forward + backward, in MB",
            _table(measured, _memory, names),
        ]
    return parts


def _table(
    cases: Cases, cell: Callable[[Rows, str], str], names: Iterable[str]
) -> str:
    return markdown(
        ["layer", *cases],
        [
            [name, *(cell(rows, name) for rows in cases.values())]
            for name in names
        ],
    )


def _compared(cases: Cases) -> list[str]:
    """What is compared with the FFT form, in the order measured."""
    names = dict.fromkeys(name for rows in cases.values() for name in rows)
    return [
        name for name in names if name != FFT_FORM and "imaginary" not in name
    ]


def _times(rows: Rows, name: str) -> str:
    return " / ".join(
        _number(rows[name][key]["median"])
        for key in ("forward_ms", "backward_ms")
    )


def _relative(rows: Rows, name: str) -> str:
    over, under = FORMS if "*" in name else (name, FFT_FORM)
    if over not in rows:
        return "-"
    over, under = (
        rows[each]["backward_ms"]["median"] for each in (over, under)
    )
    return f"{over / under:.2f}"


def _memory(rows: Rows, name: str) -> str:
    return _number(rows[name].get("backward_mb"))


def _network_table(rows: list[dict]) -> list[str]:
    times = {row["contender"]: row["step_ms"]["median"] for row in rows}
    header = ["pooling", "forward, ms", "training step, ms", "/ strided"]
    header += ["/ spectral", "/ floor", "peak memory of a step, MB"]
    return [
        f"**ResNet-18, 32 x 32, batch {rows[0]['batch']}, "
        f"{rows[0]['data_format']}**",
        markdown(
            header,
            [
                [
                    row["contender"],
                    _number(row["forward_ms"]["median"]),
                    _number(times[row["contender"]]),
                    *(
                        f"{times[row['contender']] / times[under]:.2f}"
                        for under in ("strided", "spectral", FLOOR)
                    ),
                    _number(row.get("step_mb")),
                ]
                for row in rows
            ],
        ),
    ]


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _grouped(rows: Iterable[dict], key: Callable[[dict], Any]) -> dict:
    groups: dict[Any, list[dict]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def _curves(axes: Any, rows: list[dict], key: str) -> None:
    """Draws a line for each kind of layer, over `key`."""
    names = {row["contender"] for row in rows}
    # Dynamic where there is such a thing, static on JAX.
    mode = "dynamic" if "outer, dynamic" in names else "static"
    for label, (color, marker) in _STYLES.items():
        points = {
            (row[key], nanoseconds(row))
            for row in rows
            if row["contender"] in (label, f"{label}, {mode}")
        }
        if points:
            x, y = zip(*sorted(points), strict=True)
            axes.plot(x, y, color=color, marker=marker, label=label)
    axes.set(xscale="log", yscale="log")
    axes.set(ylabel="forward + backward, ns per input value")
    ticks = sorted({row[key] for row in rows})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.grid(alpha=0.3, which="both")
    axes.spines[["top", "right"]].set_visible(False)
