"""What every method is: a module that returns named losses, and what the loop and the monitor may ask of it."""

from torch import Tensor, nn

from splitmask_backbones.vit import VisionTransformer

METRICS = ("loss", "loss_inpaint", "loss_match", "token_accuracy")
"""What every method logs; null where it has no such loss."""


class CachedGradient:
    """What one micro-batch has to know of the others of its step (gradient caching).

    Neither a dict nor a dataclass: with bf16, Fabric casts every float that it finds in what a model is called with.

    Attributes:
        value: 0-dim, the loss that compares all images of the step.
        gradient: `(R, C)`, its gradient by what `Method.represent` returns of this micro-batch.
    """

    def __init__(self, value: Tensor, gradient: Tensor) -> None:
        self.value, self.gradient = value, gradient


class Method(nn.Module):
    """Trained by calling it with a batch of its own views (`build_views`); `encoder` is what remains of it.

    Attributes:
        encoder: the result.
        metric_names: entries of what `forward` returns that are logged.
        compares_images: whether its loss compares images with each other, so that a micro-batch has to know the others.
    """

    encoder: VisionTransformer
    metric_names: tuple[str, ...] = METRICS
    compares_images: bool = False

    @property
    def trained_encoder(self) -> VisionTransformer:
        """The encoder that the optimizer moves, where the result is another that follows it."""
        return self.encoder

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns named 0-dim tensors; `loss` is minimised.

        A method that `compares_images` takes a `CachedGradient` as well.
        """
        raise NotImplementedError

    def observe(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns what a monitor looks at, by the names that `Monitor` knows; changes nothing."""
        raise NotImplementedError

    def represent(self, batch: dict[str, Tensor]) -> Tensor:
        """Returns `(R, C)` float32 of a micro-batch, what the loss compares across the images of a step."""
        raise NotImplementedError

    def cache_gradients(self, representations: list[Tensor]) -> list[CachedGradient]:
        """Returns the part of each micro-batch in what `represent` has returned of all of this process."""
        raise NotImplementedError

    def before_step(self) -> None:
        """Called when the gradients are there and before the optimizer uses them."""

    def after_step(self, done: int) -> None:
        """Called after each optimizer step with the number of finished steps, before the state is saved."""
