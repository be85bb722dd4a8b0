"""Smoothness on a schedule: masks that are soft at first, and hard at last."""

import keras

from diffstride import arguments
from diffstride.pooling import BaseDiffStride
from diffstride.static import learned_layers


class SmoothnessSchedule(keras.callbacks.Callback):
    """Narrows the ramps of a model while it is trained.

    The smoothness of all layers with a `final_smoothness_factor` falls from
    `smoothness_factor` to it, linearly over the first `share` of the epochs,
    and then stays. It changes between epochs, without compiling anything again
    (`static_sizes` compiles where a size has changed, as ever). With a final
    smoothness of 0 training ends with nominal sizes and hard masks, whose
    strides no longer move: the layer is a fixed crop of the spectrum.

    Args:
        share: above 0, up to 1.
        epochs: number of epochs that the schedule is for; by default the
            `epochs` of `fit`.

    Raises:
        ValueError: if an argument is out of range; in `fit`, if no layer of the
            model has a `final_smoothness_factor`.

    Example:

    >>> layer = DiffStride(
    ...     2.0, smoothness_factor=1.0, final_smoothness_factor=0.0
    ... )
    >>> schedule = SmoothnessSchedule(share=0.7)
    """

    def __init__(self, share: float = 0.7, epochs: int | None = None):
        super().__init__()
        self.share = arguments.share("share", share)
        self.epochs = arguments.optional_integer("epochs", epochs)

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Looks for the layers."""
        if not scheduled_layers(self.model):
            raise ValueError(
                "`SmoothnessSchedule` needs DiffStride layers with a "
                "`final_smoothness_factor`, such as 0.0. Received: "
                f"{self.model.name}, without any"
            )

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Sets the smoothness of the epoch."""
        epochs = self.epochs or self.params["epochs"]
        # The last epoch has the final smoothness, if there are two at least.
        falls = max(1, min(self.share * epochs, epochs - 1))
        done = min(1.0, epoch / falls)
        for layer in scheduled_layers(self.model):
            first, last = layer.smoothness_factor, layer.final_smoothness_factor
            layer.set_smoothness(first + done * (last - first))


def scheduled_layers(model: keras.Model) -> list[BaseDiffStride]:
    """Returns the layers in a model whose smoothness changes."""
    return [
        layer
        for layer in learned_layers(model)
        if isinstance(layer, BaseDiffStride)
        and layer.final_smoothness_factor is not None
        and not layer.frozen
    ]
