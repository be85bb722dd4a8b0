"""The FFT form of the layers in NumPy and float64, independent of ours.

Maps are (batch, channels, *spatial) with any number of spatial axes: the last
one is that of `rfft`, the others carry a weight for each sign of a frequency.
"""

import math

import numpy as np


def diffstride(
    x,
    strides,
    smoothness=4.0,
    cropping=True,
    lower=1.0,
    upper=None,
    shared=False,
    norm="backward",
    ramp="outer",
    held=None,
    keep_parity=True,
    size_step=1,
    smallest=2,
):
    """DiffStride of `x`, (batch, channels, *spatial).

    With `held`, strides as well, the ramp "straight_through" gives what its
    gradient is the exact one of: the crop stays that of `held`, and the kept
    frequencies of the ramp grow in proportion to `strides - held`.
    """
    sizes = x.shape[2:]

    def in_force(strides):
        upper_limit = math.inf if upper is None else upper
        strides = [min(max(s, lower or 1.0), upper_limit) for s in strides]
        bounds = [
            n / (n - smoothness) if ramp == "outer" and n > smoothness else 1.0
            for n in sizes
        ]
        if shared:
            bounds = [max(bounds)] * len(bounds)
        return [max(s, b) for s, b in zip(strides, bounds, strict=True)]

    strides = in_force(strides)
    held = strides if held is None else in_force(held)
    weights, new_sizes = [], []

    def in_steps(size, new_size):
        step, first = size_step, 0
        if step == 1:
            return new_size
        if keep_parity:
            step += step if step % 2 else 0
            first = 0 if ramp == "straight_through" else size % 2
        return min(
            n for n in [*range(first, size, step), size] if n >= new_size
        )

    for axis, size in enumerate(sizes):
        last = axis == len(sizes) - 1
        f = _frequencies(size, last)
        stride = strides[axis]
        if ramp == "outer":
            new_size = in_steps(
                size, _least_size(size, stride, smallest, 2 * smoothness)
            )
            even = (size if keep_parity else new_size) % 2 == 0
            mask = _outer(f, size, stride, smallest, smoothness, last, even)
            if keep_parity:
                new_size = in_steps(size, _size_of(mask, size, last))
        elif ramp == "inner":
            mask = _inner(f, size, stride, smallest, smoothness)
            of = _next_size if keep_parity else _least_size
            new_size = in_steps(size, of(size, stride, smallest))
        else:
            new_size = in_steps(
                size,
                _fixed_size(
                    size, held[axis], last or not keep_parity, smallest
                ),
            )
            mask = _kept(f, new_size, last).astype("float64")
            if smoothness:
                width = max(smoothness, 1.0)
                distance = new_size // 2 - np.maximum(np.abs(f) - 0.5, 0.0)
                moves = (f != 0) & (distance <= width / 2)
                change = (size / stride - size / held[axis]) / 2 / width
                mask *= 1.0 + moves * change
        weights.append(mask)
        new_sizes.append(new_size if cropping else size)
    return _resample(x, weights, new_sizes, norm, symmetric=ramp == "inner")


def fixed(x, strides, norm="backward"):
    """Fixed spectral pooling of `x`, (batch, channels, *spatial)."""
    sizes = x.shape[2:]
    new_sizes = fixed_sizes(sizes, strides)
    weights = []
    for axis, (size, new_size) in enumerate(zip(sizes, new_sizes, strict=True)):
        last = axis == len(sizes) - 1
        weights.append(_kept(_frequencies(size, last), new_size, last))
    return _resample(x, weights, new_sizes, norm)


def fixed_sizes(sizes, strides):
    """Output sizes of fixed spectral pooling."""
    return [
        _fixed_size(size, stride, axis == len(sizes) - 1)
        for axis, (size, stride) in enumerate(zip(sizes, strides, strict=True))
    ]


def _frequencies(size, last):
    """Whole cycles over the map, in the order of the transform."""
    if last:
        return np.arange(size // 2 + 1)
    return np.round(np.fft.fftfreq(size) * size).astype(int)


def _outer(f, size, stride, smallest, smoothness, last, even):
    position = np.abs(f)
    if even:
        # The negative side reaches a bin further, and so does the last axis.
        position = position - ((f < 0) | last)
    inside = max(size / stride, smallest) / 2 - position
    if smoothness == 0:
        return (inside > 0).astype("float64")
    return np.clip((inside + smoothness) / smoothness, 0, 1)


def _inner(f, size, stride, smallest, smoothness):
    half_width = max(size / stride, smallest) / 2
    inside = half_width - np.maximum(np.abs(f) - 0.5, 0.0)
    width = min(smoothness, max(half_width / 2, 1.0))
    if width == 0:
        return (inside > 0).astype("float64")
    return np.where(f == 0, 1.0, np.clip(inside / width, 0, 1))


def _kept(f, new_size, last):
    """Whether a hard crop to `new_size` keeps the frequency."""
    if last:
        return 2 * f <= new_size
    return (2 * f < new_size) & (-2 * f <= new_size)


def _size_of(mask, size, last):
    """Number of samples for the frequencies that a mask does not remove."""
    kept = int((mask > 0).sum())
    if not last:
        return kept
    return 2 * kept - 1 if size % 2 else 2 * (kept - 1)


def _least_size(size, stride, smallest, outside=0):
    return min(math.ceil(max(size / stride, smallest) + outside), size)


def _next_size(size, stride, smallest):
    """Least size of the parity of `size` from `size / stride` on."""
    new_size = size % 2
    while new_size < max(size / stride, smallest):
        new_size += 2
    return min(new_size, size)


def _fixed_size(size, stride, last, smallest=2):
    new_size = int(size // stride)
    if not last:
        new_size = new_size // 2 * 2
        smallest = -(-smallest // 2) * 2
    return min(max(new_size, smallest), size)


def _resample(x, weights, new_sizes, norm, symmetric=False):
    """Transforms, weighs, crops or not, transforms back."""
    sizes = x.shape[2:]
    axes = tuple(range(2, x.ndim))
    # NumPy would compute transforms of float32 in float32.
    spectrum = np.fft.rfftn(x.astype("float64"), axes=axes)
    for axis, mask, size, new_size in zip(
        axes, weights, sizes, new_sizes, strict=True
    ):
        shape = [1] * x.ndim
        shape[axis] = -1
        spectrum = spectrum * mask.reshape(shape)
        if axis == axes[-1]:
            columns = np.arange(new_size // 2 + 1)
            spectrum = np.take(spectrum, columns, axis)
        elif new_size < size:
            spectrum = _crop(spectrum, axis, new_size, symmetric)
    y = np.fft.irfftn(spectrum, s=new_sizes, axes=axes)
    ratio = np.prod(new_sizes) / np.prod(sizes)
    return y * {"backward": 1.0, "ortho": ratio**0.5, "forward": ratio}[norm]


def _crop(spectrum, axis, new_size, symmetric):
    """Least frequencies of a two-sided axis.

    An even size has a single row for both signs of its Nyquist frequency. Their
    mean goes there if the mask is `symmetric`, else the negative one, at which
    the others end.
    """
    half = new_size // 2
    size = spectrum.shape[axis]
    positive = np.arange((new_size + 1) // 2)
    negative = np.arange(size - half, size)
    cropped = np.take(spectrum, np.concatenate([positive, negative]), axis)
    if symmetric and new_size % 2 == 0:
        nyquist = [slice(None)] * spectrum.ndim
        nyquist[axis] = half
        other = np.take(spectrum, half, axis)
        cropped[tuple(nyquist)] = (cropped[tuple(nyquist)] + other) / 2
    return cropped
