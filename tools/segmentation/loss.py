"""Cross-entropy with a weight a class that also works with ignored pixels, where mmseg's own fails on label 255."""

from collections.abc import Sequence

from mmseg.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional


@MODELS.register_module()
class ClassWeightedCrossEntropy(nn.Module):
    """The mean over labelled pixels, each weighted by its class.

    Args:
        class_weight: one weight a class.
        loss_weight: factor on the loss.
        loss_name: its name in the log; mmseg sums what starts with "loss".
    """

    def __init__(self, class_weight: Sequence[float], loss_weight: float = 1.0, loss_name: str = "loss_ce") -> None:
        super().__init__()
        self.class_weight, self.loss_weight, self.loss_name = list(class_weight), loss_weight, loss_name

    def forward(self, logits: Tensor, labels: Tensor, weight: Tensor | None = None, ignore_index: int = 255) -> Tensor:
        """Returns the loss of float `(B, classes, H, W)` and int64 `(B, H, W)`; 0 where every pixel is ignored.

        `weight`, float `(B, H, W)`, comes from mmseg's pixel samplers.
        """
        class_weight = logits.new_tensor(self.class_weight)
        loss = functional.cross_entropy(logits, labels, class_weight, ignore_index=ignore_index, reduction="none")
        labelled = labels != ignore_index
        total = (class_weight[labels.where(labelled, 0)] * labelled).sum()
        if weight is not None:
            loss = loss * weight
        return self.loss_weight * loss.sum() / total.clamp(min=1e-12)
