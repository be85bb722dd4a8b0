"""Tables and a picture of what `benchmark.py` has measured."""

import pathlib
from typing import Any

from diffstride.formatting import markdown

# Contenders: the forms of the imaginary part, and the least a network takes.
FORMS = ("outer, imaginary part low rank", "outer, imaginary part whole")
FLOOR = "outer's floor: slices"
# Okabe and Ito's colours, which colour-blind readers can tell apart.
_STYLES = {
    "FFT form": ("#999999", "s"),
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
    groups: dict[tuple, dict] = {}
    for row in results["layer"]:
        key = (row["data_format"], row["stride"], row["channels"])
        case = (row["size"], row["batch"])
        groups.setdefault(key, {}).setdefault(case, {})[row["contender"]] = row
    for (data_format, stride, channels), cases in groups.items():
        # Where only a size or two were measured they share a table, below.
        if len(cases) > 2:
            title = f"{data_format}, {channels} channels, stride {stride:g}"
            parts += _layer_tables(title, cases)
    others = {key: cases for key, cases in groups.items() if len(cases) <= 2}
    parts += _other_table(others)
    for data_format in dict.fromkeys(
        row["data_format"] for row in results["network"]
    ):
        rows = [
            r for r in results["network"] if r["data_format"] == data_format
        ]
        parts += _network_table(rows)
    return "\n\n".join(parts)


def ratio(results: dict[str, Any], over: str, under: str, **case: Any) -> float:
    """Ratio of the times, forward and backward, of two layers on one input.

    Args:
        results: the content of a results file.
        over: a contender.
        under: another.
        **case: what selects the input, such as `size=32`.

    Returns:
        Time of `over` / time of `under`.
    """
    times = {
        row["contender"]: row["backward_ms"]["median"]
        for row in results["layer"]
        if all(row[key] == value for key, value in case.items())
    }
    return times[over] / times[under]


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

    formats = [row["data_format"] for row in results["layer"]]
    rows = [
        row
        for row in results["layer"]
        if row["stride"] == 2 and row["data_format"] == formats[0]
    ]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
    _curves(left, [row for row in rows if row["channels"] == 64], "size")
    left.set(xlabel="height and width of the map (64 channels)")
    _curves(right, [row for row in rows if row["size"] == 32], "channels")
    right.set(xlabel="channels (maps of 32 x 32)")
    for axes in (left, right):
        axes.set(xscale="log", yscale="log")
        axes.set(ylabel="forward + backward, ns per input value")
        ticks = sorted({x for line in axes.lines for x in line.get_xdata()})
        axes.set_xticks(ticks, [str(int(x)) for x in ticks])
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.grid(alpha=0.3, which="both")
        axes.spines[["top", "right"]].set_visible(False)
    right.legend(
        frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9
    )
    environment = results["environment"]
    figure.suptitle(
        f"Cost of a layer at stride 2: {environment['backend']} "
        f"{environment['version']}, {environment['device']}, {formats[0]}",
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


def _layer_tables(title: str, cases: dict[tuple, dict]) -> list[str]:
    """Times, and the same relative to the FFT form."""
    names = [
        name for name in next(iter(cases.values())) if "imaginary" not in name
    ]
    header = [f"{size} ({batch})" for size, batch in cases]
    return [
        f"**Layers, {title}**: forward / forward + backward in ms, by height "
        "and width (batch)",
        markdown(
            ["layer", *header],
            [
                [name, *(_pair(rows[name], "ms") for rows in cases.values())]
                for name in names
            ],
        ),
        "The same, forward + backward, relative to the FFT form; last, which "
        "form of the imaginary part is cheaper (low rank / whole)",
        markdown(
            ["layer", *header],
            [
                [
                    name,
                    *(
                        f"{_relative(rows, name, 'FFT form'):.2f}"
                        for rows in cases.values()
                    ),
                ]
                for name in names[1:]
            ]
            + [
                [
                    "*low rank / whole*",
                    *(
                        f"{_relative(rows, *FORMS):.2f}"
                        for rows in cases.values()
                    ),
                ]
            ],
        ),
        *_memory_table(names, cases),
    ]


def _memory_table(names: list[str], cases: dict[tuple, dict]) -> list[str]:
    """Peak memory, of the sizes of which it was measured."""
    known = {
        case: rows
        for case, rows in cases.items()
        if any(row.get("backward_mb") is not None for row in rows.values())
    }
    if not known:
        return []
    header = [f"{size} ({batch})" for size, batch in known]
    return [
        "Peak memory of forward + backward, in MB",
        markdown(
            ["layer", *header],
            [
                [
                    name,
                    *(
                        _number(rows[name].get("backward_mb"))
                        for rows in known.values()
                    ),
                ]
                for name in names
            ],
        ),
    ]


def _other_table(groups: dict[tuple, dict]) -> list[str]:
    """Further channels and strides, relative to the FFT form."""
    columns = [
        (f"{size} x {channels}, stride {stride:g}", rows)
        for (_, stride, channels), cases in groups.items()
        for (size, _), rows in cases.items()
    ]
    if not columns:
        return []
    names = [
        name
        for name in columns[0][1]
        if "imaginary" not in name and name != "FFT form"
    ]
    return [
        "**Other channels and strides** (size x channels): forward + backward "
        "relative to the FFT form",
        markdown(
            ["layer", *(title for title, _ in columns)],
            [
                [
                    name,
                    *(
                        f"{_relative(rows, name, 'FFT form'):.2f}"
                        if name in rows
                        else "-"
                        for _, rows in columns
                    ),
                ]
                for name in names
            ],
        ),
    ]


def _network_table(rows: list[dict]) -> list[str]:
    times = {row["contender"]: row["step_ms"]["median"] for row in rows}
    table = []
    for row in rows:
        step = row["step_ms"]["median"]
        table.append(
            [
                row["contender"],
                _number(row["forward_ms"]["median"]),
                _number(step),
                f"{step / times['strided']:.2f}",
                f"{step / times['spectral']:.2f}",
                f"{step / times[FLOOR]:.2f}",
                _number(row.get("step_mb")),
            ]
        )
    return [
        f"**ResNet-18, 32 x 32, batch {rows[0]['batch']}, "
        f"{rows[0]['data_format']}**",
        markdown(
            [
                "pooling",
                "forward, ms",
                "training step, ms",
                "/ strided",
                "/ spectral",
                "/ floor",
                "peak memory of a step, MB",
            ],
            table,
        ),
    ]


def _relative(rows: dict[str, dict], over: str, under: str) -> float:
    """Ratio of two layers' times, forward and backward."""
    return (
        rows[over]["backward_ms"]["median"]
        / rows[under]["backward_ms"]["median"]
    )


def _pair(row: dict, unit: str) -> str:
    return " / ".join(
        _number(row[f"{measure}_{unit}"]["median"])
        for measure in ("forward", "backward")
    )


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _curves(axes: Any, rows: list[dict], key: str) -> None:
    for label, (color, marker) in _STYLES.items():
        points = []
        for row in rows:
            name = row["contender"]
            # Dynamic where there is such a thing, static on JAX.
            own = name == label or name == f"{label}, {_mode(rows)}"
            if own:
                points.append((row[key], nanoseconds(row)))
        if points:
            x, y = zip(*sorted(set(points)), strict=True)
            axes.plot(x, y, color=color, marker=marker, label=label)


def _mode(rows: list[dict]) -> str:
    dynamic = any(row["contender"] == "outer, dynamic" for row in rows)
    return "dynamic" if dynamic else "static"
