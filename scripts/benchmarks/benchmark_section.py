"""README's section on performance, made of what `benchmark.py` has measured."""

import re
import textwrap
from typing import Any

from benchmark_report import FLOOR, FORMS, nanoseconds, ratio, tables

_RAMPS = ("outer", "inner", "straight-through")
_SIZES = (8, 16, 32, 64, 112, 224)
_USUAL = {"stride": 2.0, "channels": 64, "data_format": "channels_last"}


def section(results: dict[str, Any]) -> str:
    """Writes the section.

    Args:
        results: the content of a results file, of all default measurements on
            TensorFlow.

    Returns:
        Markdown, with its heading.
    """
    blocks = tables(results).split("\n\n")
    relative = blocks[_starting(blocks, "The same, forward + backward") + 1]
    relative = "\n".join(
        line for line in relative.splitlines() if not line.startswith("| *low")
    )
    text = _TEXT.format(
        relative=relative,
        network=blocks[-1],
        **_layer_figures(results),
        **_network_figures(results),
        **_environment(results),
    )
    return "\n\n".join(_wrapped(block) for block in text.strip().split("\n\n"))


def _layer_figures(results: dict[str, Any]) -> dict[str, str]:
    outer = ratio(results, "outer, dynamic", "FFT form", size=32, **_USUAL)
    found = _relative_to_the_fft_form(results)
    return {
        "outer": f"{outer:.2f}",
        "worst": f"{max(found['usual']):.2f}",
        "worst_other": f"{max(found['other']):.2f}",
        "worst_xla": f"{max(found['xla']):.1f}",
        "by_size": _range(_per_value(results, size, 64) for size in _SIZES),
        "few": f"{_per_value(results, 32, 4):.0f}",
        "many": f"{_per_value(results, 32, 256):.1f}",
        **{
            f"rank_{size}": f"{ratio(results, *FORMS, size=size, **_USUAL):.2f}"
            for size in (32, 64, 224)
        },
    }


def _relative_to_the_fft_form(
    results: dict[str, Any],
) -> dict[str, list[float]]:
    """Ratios of all ramps in all cases: the usual ones, others, with XLA."""
    cases: dict[tuple, dict[str, float]] = {}
    for row in results["layer"]:
        keys = ("data_format", "stride", "channels", "size")
        case = cases.setdefault(tuple(row[key] for key in keys), {})
        case[row["contender"]] = row["backward_ms"]["median"]
    found: dict[str, list[float]] = {"usual": [], "other": [], "xla": []}
    for (_, stride, channels, _), times in cases.items():
        usual = "usual" if (stride, channels) == (2.0, 64) else "other"
        for name, value in times.items():
            if name.startswith(_RAMPS) and "imaginary" not in name:
                kind = "xla" if name.endswith("XLA") else usual
                found[kind].append(value / times["FFT form"])
    return found


def _per_value(results: dict[str, Any], size: int, channels: int) -> float:
    """Nanoseconds of the outer ramp per value of its input."""
    case = {**_USUAL, "contender": "outer, dynamic"}
    case |= {"size": size, "channels": channels}
    (row,) = (row for row in results["layer"] if case.items() <= row.items())
    return nanoseconds(row)


def _network_figures(results: dict[str, Any]) -> dict[str, str]:
    steps = {
        row["contender"]: row["step_ms"]["median"] for row in results["network"]
    }
    floor = steps[FLOOR]
    figures = {
        "outer_strided": steps["outer"] / steps["strided"],
        "floor_strided": floor / steps["strided"],
        "outer_floor": steps["outer"] / floor,
    }
    for name, key in (("inner", "inner"), ("straight-through", "through")):
        figures[f"{key}_spectral"] = steps[name] / steps["spectral"]
        figures[f"{key}_strided"] = steps[name] / steps["strided"]
    return {key: f"{value:.2f}" for key, value in figures.items()}


def _environment(results: dict[str, Any]) -> dict[str, str]:
    environment = results["environment"]
    return {
        "minutes": f"{results['seconds'] / 60:.0f}",
        "device": environment["device"],
        "tensorflow": environment["version"],
        "keras": environment["keras"],
    }


def _range(values: Any) -> str:
    values = list(values)
    return f"{min(values):.0f} to {max(values):.0f}"


def _starting(blocks: list[str], text: str) -> int:
    return next(i for i, block in enumerate(blocks) if block.startswith(text))


def _wrapped(block: str) -> str:
    """A paragraph or a list item, wrapped; tables and code as they are."""
    if block.startswith(("|", "`", "#", "!")):
        return block
    indent = "  " if block.startswith("- ") else ""
    return textwrap.fill(
        re.sub(r"\s+", " ", block),
        80,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


_TEXT = """
## Performance

Time of a layer, forward and backward, relative to the FFT form of the release
(rfft2, masks, crop, irfft2), at stride 2, with 64 channels, channels_last, by
height and width of the map and (batch):

{relative}

With the outer ramp, on maps of 32 x 32, the layer takes {outer} of the time of
the FFT form. At stride 2 and with 64 channels no ramp is slower than that form,
from 8 x 8 to 224 x 224 and in either data format: at most {worst} of it. With
other numbers of channels, or at stride 1, it is at most {worst_other}; compiled
by XLA, on this CPU, up to {worst_xla}. Time grows with the number of values in
the map: {by_size} ns for each from 8 x 8 to 224 x 224. It falls with the number
of channels, from {few} ns at 4 to {many} ns at 256.

For even sizes the imaginary part of the vertical matrix is of low rank. Its two
factors take {rank_32} of the time of the whole matrix at 32 x 32, {rank_64} at
64 x 64, {rank_224} at 224 x 224; with a smoothness of 4 the layer takes the
factors from a height of 50 on.

![Cost of a layer by size and by channels](docs/benchmark.png)

A training step of ResNet-18 on images of 32 x 32, batch 32, and what it costs
relative to strided convolutions, to fixed spectral pooling, and to the floor:
the network of the outer ramp with its pooling replaced by slices to the same
sizes.

{network}

- **The outer ramp costs what its larger maps cost**, {outer_strided} times the
strided network; the floor takes {floor_strided} times, nearly all of it in the
convolutions. Pooling and the gradient of the strides come to {outer_floor} of
the floor.

- **At equal sizes**, the inner ramp takes {inner_spectral} of the time of fixed
spectral pooling and {inner_strided} of that of strided convolutions,
straight-through {through_spectral} and {through_strided}.

The learning rate is 0 in these steps, so that sizes stay: at stride 2 they lie
on an edge, and the first step of training may make a map larger or smaller by
2, with the cost of that.

All of it comes from `results/benchmark.json`, in full in
[docs/benchmark.md](docs/benchmark.md), made by these commands in {minutes}
minutes on {device} with TensorFlow {tensorflow} and Keras {keras}; the third
prints this section. Only ratios within a run are to be compared, and of those a
tenth may be chance.

```bash
python scripts/benchmark.py --output=results/benchmark.json
python scripts/benchmark.py --table results/benchmark.json > docs/benchmark.md
python scripts/benchmark.py --section results/benchmark.json
python scripts/benchmark.py --plot results/benchmark.json
```
"""
