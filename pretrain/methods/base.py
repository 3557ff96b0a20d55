"""What every method is: a module that returns named losses, and what the loop and the monitor may ask of it."""

from torch import Tensor, nn

from splitmask_backbones.vit import VisionTransformer

METRICS = ("loss", "loss_inpaint", "loss_match", "token_accuracy")
"""What every method logs; null where it has no such loss."""


class Method(nn.Module):
    """Trained by calling it with a batch of its own views (`build_views`); `encoder` is what remains of it.

    Attributes:
        encoder: the result.
        metric_names: entries of what `forward` returns that are logged.
    """

    encoder: VisionTransformer
    metric_names: tuple[str, ...] = METRICS

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns named 0-dim tensors; `loss` is minimised."""
        raise NotImplementedError

    def observe(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns what a monitor looks at, by the names that `Monitor` knows; changes nothing."""
        raise NotImplementedError

    def before_step(self) -> None:
        """Called when the gradients are there and before the optimizer uses them."""

    def after_step(self, done: int) -> None:
        """Called after each optimizer step with the number of finished steps, before the state is saved."""
