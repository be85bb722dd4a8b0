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
    """Lays out the content of a results file as Markdown."""
    by_size: dict[str, Cases] = {}
    others: Cases = {}
    for row in results["layer"]:
        size, channels, stride = row["size"], row["channels"], row["stride"]
        if (channels, stride) == (64, 2):
            cases = by_size.setdefault(row["data_format"], {})
            title = f"{size} ({row['batch']})"
        else:
            cases = others
            title = f"{size} x {channels}, stride {stride:g}"
        cases.setdefault(title, {})[row["contender"]] = row
    networks: dict[str, list[dict]] = {}
    for row in results["network"]:
        networks.setdefault(row["data_format"], []).append(row)

    parts = [_heading(results)]
    for data_format, cases in by_size.items():
        parts += _layer_tables(data_format, cases)
    if others:
        parts += [
            "**Other channels and strides** (size x channels): forward + "
            "backward relative to the FFT form",
            _table(others, _relative, _compared(others)),
        ]
    for rows in networks.values():
        parts += _network_table(rows)
    return "\n\n".join(parts)


def _heading(results: dict[str, Any]) -> str:
    environment = results["environment"]
    return (
        f"{environment['backend']} {environment['version']}, Keras "
        f"{environment['keras']}, {environment['device']}, {results['dtype']}; "
        f"{results['seconds']} s in all."
    )


def _layer_tables(data_format: str, cases: Cases) -> list[str]:
    """Times, the same relative to the FFT form, and memory where measured."""
    names = [FFT_FORM, *_compared(cases)]
    parts = [
        f"**Layers, {data_format}, 64 channels, stride 2**: forward / "
        "forward + backward in ms, by height and width (batch)",
        _table(cases, _times, names),
        "The same, forward + backward, relative to the FFT form; last, which "
        "form of the imaginary part is cheaper (low rank / whole)",
        _table(cases, _relative, [*names[1:], "*low rank / whole*"]),
    ]
    measured = {
        title: rows
        for title, rows in cases.items()
        if rows[FFT_FORM].get("backward_mb") is not None
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
    row = rows[name]
    forward, backward = row["forward_ms"]["median"], backward_ms(row)
    return f"{_number(forward)} / {_number(backward)}"


def _relative(rows: Rows, name: str) -> str:
    over, under = FORMS if "*" in name else (name, FFT_FORM)
    if over not in rows:
        return "-"
    return f"{backward_ms(rows[over]) / backward_ms(rows[under]):.2f}"


def _memory(rows: Rows, name: str) -> str:
    return _number(rows[name].get("backward_mb"))


def _network_table(rows: list[dict]) -> list[str]:
    header = ["pooling", "MACs / strided", "forward, ms", "/ strided"]
    header += ["training step, ms", "/ strided", "/ spectral", "/ floor"]
    header += ["peak memory of a step, MB"]
    steps = {row["contender"]: row["step_ms"]["median"] for row in rows}
    strided = {row["contender"]: row for row in rows}["strided"]
    lines = []
    for row in rows:
        step = steps[row["contender"]]
        lines.append(
            [
                row["contender"],
                f"{row['macs'] / strided['macs']:.2f}"
                if "macs" in row
                else "-",
                _number(row["forward_ms"]["median"]),
                _ratio(row, strided, "forward_ms"),
                _number(step),
                _ratio(row, strided, "step_ms"),
                f"{step / steps['spectral']:.2f}",
                f"{step / steps[FLOOR]:.2f}",
                _number(row.get("step_mb")),
            ]
        )
    title = f"batch {rows[0]['batch']}, {rows[0]['data_format']}"
    return [f"**ResNet-18, 32 x 32, {title}**", markdown(header, lines)]


def _ratio(row: dict, other: dict, measure: str) -> str:
    return f"{row[measure]['median'] / other[measure]['median']:.2f}"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def backward_ms(row: dict[str, Any]) -> float:
    """Returns the time of a layer, forward and backward."""
    return row["backward_ms"]["median"]


def nanoseconds(row: dict[str, Any]) -> float:
    """Returns the time of a layer, forward and backward, per input value."""
    values = row["batch"] * row["size"] ** 2 * row["channels"]
    return 1e6 * backward_ms(row) / values


def plot(results: dict[str, Any], picture: pathlib.Path) -> None:
    """Draws how the cost of a layer grows with size and with channels."""
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
    figure.savefig(picture, dpi=110)


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
