"""The FFT form of the layers in NumPy and float64, independent of ours."""

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
):
    """DiffStride of `x`, (batch, channels, height, width)."""
    height, width = x.shape[2:]
    upper = math.inf if upper is None else upper
    strides = [min(max(s, lower or 1.0), upper) for s in strides]
    bounds = [
        n / (n - smoothness) if n > smoothness else 1.0 for n in (height, width)
    ]
    if shared:
        bounds = [max(bounds)] * 2
    strides = [max(s, b) for s, b in zip(strides, bounds, strict=True)]
    rows = _vertical_mask(height, strides[0], smoothness)
    columns = _horizontal_mask(width, strides[1], smoothness)
    spectrum = np.fft.rfft2(x) * rows[:, None] * columns
    new_height, new_width = height, width
    if cropping:
        spectrum = spectrum[:, :, rows > 0][..., columns > 0]
        new_height = int((rows > 0).sum())
        kept = int((columns > 0).sum())
        new_width = 2 * (kept - 1) if width % 2 == 0 else 2 * kept - 1
    y = np.fft.irfft2(spectrum, s=(new_height, new_width))
    return y * _scale(norm, x.shape[2:], y.shape[2:])


def fixed(x, strides, norm="backward"):
    """Fixed spectral pooling of `x`, (batch, channels, height, width)."""
    height, width = x.shape[2:]
    new_height = min(max(int(height // strides[0]) // 2 * 2, 2), height)
    new_width = min(max(int(width // strides[1]), 2), width)
    spectrum = np.fft.rfft2(x)[..., : new_width // 2 + 1]
    if new_height < height:
        half = new_height // 2
        spectrum = np.concatenate(
            [spectrum[:, :, :half], spectrum[:, :, -half:]], axis=2
        )
    y = np.fft.irfft2(spectrum, s=(new_height, new_width))
    return y * _scale(norm, x.shape[2:], y.shape[2:])


def _vertical_mask(size, stride, smoothness):
    f = np.round(np.fft.fftfreq(size) * size)
    position = np.abs(f)
    if size % 2 == 0:
        position[f < 0] -= 1
    return _ramp(max(size / stride, 2) / 2 - position, smoothness)


def _horizontal_mask(size, stride, smoothness):
    half_width = max(size / stride, 2) / 2
    if size % 2 == 0:
        half_width += 1
    return _ramp(half_width - np.arange(size // 2 + 1), smoothness)


def _ramp(inside, smoothness):
    if smoothness == 0:
        return (inside > 0).astype("float64")
    return np.clip((inside + smoothness) / smoothness, 0, 1)


def _scale(norm, size, new_size):
    ratio = np.prod(new_size) / np.prod(size)
    return {"backward": 1.0, "ortho": ratio**0.5, "forward": ratio}[norm]
