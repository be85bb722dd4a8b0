"""A network for sounds: strides along time and along frequency."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
from keras import ops

from diffstride import arguments
from diffstride.composite import Composite, network_config, pooling_factory
from diffstride.parts import (
    PLACEMENTS,
    Parts,
    PoolingClass,
    Stride,
    parse_strides,
    resolve_channels_first,
    whole_strides,
)
from diffstride.pooling import PACKAGE
from diffstride.static import StaticSizes

FILTERS = (64, 128, 256, 256, 512, 512)
STRIDES = ((2, 2), (2, 2), (1, 1), (2, 2), (1, 1), (2, 2))
_WINDOW_S = 0.025
_HOP_S = 0.010
_LOWEST_HZ = 60.0
_HIGHEST = 0.4875  # Of the sample rate: 7,800 Hz of 16,000.
# No clipping below a maximum: Keras takes that of the whole batch.
_NO_TOP_DB = 1000.0


@keras.saving.register_keras_serializable(PACKAGE)
class WindowedSequential(StaticSizes, keras.Sequential):
    """A `keras.Sequential` of one window of sound, which averages over several.

    Args:
        layers: as of `keras.Sequential`. They take (batch, samples).
        **kwargs: `name` and `trainable`.

    Call arguments:
        inputs: windows, or clips of several.
        training: whether batch statistics are used and updated.

    Input shape:
        `(batch, samples)`, or `(batch, windows, samples)`.

    Output shape:
        That of the layers. For several windows their outputs are averaged.
    """

    # What the axes of maps are, in names of what is logged.
    axes = {1: ("time",), 2: ("time", "frequency")}

    def call(
        self, inputs: Any, training: bool | None = None, mask: Any = None
    ) -> Any:
        """Returns the outputs, averaged over windows."""
        if len(inputs.shape) < 3:
            return super().call(inputs, training=training)
        windows, samples = ops.shape(inputs)[1:]
        x = ops.reshape(inputs, (-1, samples))

        def mean(y: Any) -> Any:
            return ops.mean(ops.reshape(y, (-1, windows, *y.shape[1:])), axis=1)

        y = super().call(x, training=training)
        return keras.tree.map_structure(mean, y)

    def compute_output_spec(
        self, inputs: Any, training: bool | None = None, mask: Any = None
    ) -> Any:
        """Returns what `call` does, for symbolic inputs."""
        if len(inputs.shape) == 3:
            batch, _, samples = inputs.shape
            inputs = keras.KerasTensor((batch, samples), inputs.dtype)
        return super().compute_output_spec(inputs, training=training)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """Returns the output shape, which has no windows."""
        if len(input_shape) == 3:
            input_shape = (input_shape[0], input_shape[2])
        return super().compute_output_shape(input_shape)


@keras.saving.register_keras_serializable(PACKAGE)
class AudioCNN(Composite, WindowedSequential):
    """Convolutional network of log-mel spectrograms, from the sound on.

    Front end: mel spectrogram in decibels, windows of 25 ms every 10 ms, scaled
    by 1/40 and shifted by 1, as a map of (time, frequency) with one channel.
    Each block: a convolution along time, BN, ReLU, a convolution along
    frequency, BN, ReLU. It is downsampled after its first convolution or before
    it. Head: global max pooling, dense.

    Args:
        filters: channels of each block.
        strides: strides of each block, pairs (time, frequency) or numbers, or
            text such as `"2, 2, 1, 2, 1, 2"`. Integers unless `pooling_cls`
            takes others.
        num_output_classes: number of outputs, or a dictionary of them for
            several tasks, whose heads share all that comes before.
        output_activation: activation of the dense layer, `None` for logits.
        channels_first: whether channels come first in maps; `None` follows
            `keras.config.image_data_format()`.
        pooling_cls: `None` for strided convolutions, each along its own axis,
            or a pooling layer class that takes `strides`, `data_format`,
            `dtype` and `name`; any callable with these arguments will do.
        weight_decay: factor of the L2 penalty on kernels and dense bias.
        pooling_placement: `"after"` the first convolution of a block,
            `"before"` it (the first block pools after it), or at the `"end"` of
            the block, after its last activation. Frequencies that a filter
            takes out right after a convolution are lost; an activation brings
            some of what they tell below the cut-off first.
        sample_rate: samples per second of the inputs.
        mel_channels: number of frequencies.
        **kwargs: `name`, `trainable` and `dtype`.

    Call arguments:
        inputs: windows of sound, or clips of several windows.
        training: whether batch statistics are used and updated.

    Input shape:
        `(batch, samples)`, or `(batch, windows, samples)`.

    Output shape:
        `(batch, num_output_classes)`: for clips the mean over their windows. Of
        several tasks a dictionary of such outputs.

    Raises:
        ValueError: if lengths disagree, or an argument is refused.

    Example:

    >>> model = AudioCNN([8, 16], [(2, 2), (1, 2)], pooling_cls=DiffStride)
    >>> model.build((None, 16000))
    >>> tuple(model(np.zeros((4, 3, 16000), "float32")).shape)
    (4, 10)

    Reference:
        - [Learning Strides in Convolutional Neural Networks](
        https://arxiv.org/abs/2202.01653), Riad et al., ICLR 2022.
    """

    def __init__(
        self,
        filters: Sequence[int] = FILTERS,
        strides: Sequence[Stride] | str = STRIDES,
        num_output_classes: int | dict[str, int] = 10,
        output_activation: str | Callable | None = None,
        channels_first: bool | None = None,
        pooling_cls: PoolingClass = None,
        weight_decay: float = 0.0,
        pooling_placement: str = "after",
        sample_rate: int = 16000,
        mel_channels: int = 64,
        **kwargs: Any,
    ):
        dtype = kwargs.pop("dtype", None)  # Sequential models take none.
        super().__init__(**kwargs)
        if dtype is not None:
            self.dtype_policy = keras.dtype_policies.get(dtype)
        strides = parse_strides(strides)
        filters = arguments.plain(filters)
        if not isinstance(filters, (list, tuple)):
            raise arguments.refusal("filters", "a list of integers", filters)
        self.filters = [
            arguments.integer(f"filters[{i}]", each)
            for i, each in enumerate(filters)
        ]
        if len(strides) != len(filters) or not filters:
            raise ValueError(
                "`filters` and `strides` must have one entry for each block. "
                f"Received: filters={self.filters}, strides={strides}"
            )
        for i, stride in enumerate(strides):
            arguments.strides(f"strides[{i}]", stride, 2)
        self.strides = strides
        self.num_output_classes = arguments.classes(
            "num_output_classes", num_output_classes
        )
        self.output_activation = output_activation
        self.channels_first = resolve_channels_first(channels_first)
        self.pooling_cls = pooling_factory(pooling_cls)
        self.weight_decay = arguments.number("weight_decay", weight_decay)
        self.pooling_placement = arguments.choice(
            "pooling_placement", pooling_placement, (*PLACEMENTS, "end")
        )
        # The least that has room for 25 ms and 10 ms.
        self.sample_rate = arguments.integer("sample_rate", sample_rate, 200)
        self.mel_channels = arguments.integer("mel_channels", mel_channels)
        for layer in self._parts():
            self.add(layer)

    @property
    def steps(self) -> tuple[float, float]:
        """Seconds and mel channels from one place of a map to the next."""
        return round(_HOP_S * self.sample_rate) / self.sample_rate, 1.0

    def _parts(self) -> Iterator[keras.layers.Layer]:
        """The layers from the input to the output."""
        parts = Parts(self.channels_first, self.weight_decay, self.dtype_policy)
        yield from self._front_end()
        for i, (filters, stride) in enumerate(
            zip(self.filters, self.strides, strict=True), 1
        ):
            yield keras.Sequential(
                self._block(parts, filters, stride, i == 1),
                name=f"block_{i}",
            )
        yield keras.layers.GlobalMaxPooling2D(
            data_format=parts.data_format,
            dtype=self.dtype_policy,
            name="maximum",
        )
        yield parts.dense(
            self.num_output_classes, self.output_activation, self.filters[-1]
        )

    def _front_end(self) -> Iterator[keras.layers.Layer]:
        """From a sound to a map, all of it in layers of Keras."""
        length = round(_WINDOW_S * self.sample_rate)
        dtype = self.dtype_policy
        yield keras.layers.MelSpectrogram(
            fft_length=1 << (length - 1).bit_length(),
            sequence_length=length,
            sequence_stride=round(_HOP_S * self.sample_rate),
            sampling_rate=self.sample_rate,
            num_mel_bins=self.mel_channels,
            min_freq=_LOWEST_HZ,
            max_freq=_HIGHEST * self.sample_rate,
            top_db=_NO_TOP_DB,
            dtype=dtype,
            name="mel",
        )
        yield keras.layers.Rescaling(1 / 40, 1.0, dtype=dtype, name="scale")
        yield keras.layers.Permute((2, 1), dtype=dtype, name="time_frequency")
        shape = (-1, self.mel_channels)
        yield keras.layers.Reshape(
            (1, *shape) if self.channels_first else (*shape, 1),
            dtype=dtype,
            name="map",
        )

    def _block(
        self, parts: Parts, filters: int, stride: Stride, first: bool
    ) -> list[keras.layers.Layer]:
        along_time, along_frequency = whole_strides(stride, self.pooling_cls)
        block = [
            parts.conv(filters, (3, 1), (along_time, 1), "conv_time"),
            parts.batch_norm_relu("bn_time"),
            parts.conv(filters, (1, 3), (1, along_frequency), "conv_frequency"),
            parts.batch_norm_relu("bn_frequency"),
        ]
        if self.pooling_cls is not None:
            place = {"before": 1 if first else 0, "after": 1, "end": 4}
            block.insert(
                place[self.pooling_placement],
                parts.pooling(self.pooling_cls, stride),
            )
        return block

    def build(self, input_shape: tuple) -> None:
        """Builds the graph of a window, for batches of any size."""
        super().build((None, input_shape[-1]))

    @property
    def pooling_layers(self) -> list[keras.layers.Layer]:
        """The pooling layers, in depth order."""
        return [
            layer
            for block in self.layers
            if isinstance(block, keras.Sequential)
            for layer in block.layers
            if layer.name == "pooling"
        ]

    def get_config(self) -> dict:
        """Returns the arguments."""
        return {
            **network_config(self),
            "sample_rate": self.sample_rate,
            "mel_channels": self.mel_channels,
        }
