"""Linear classifiers on frozen features, one a layer, all trained at once."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.training.loader import StepBatches

ROWS_AT_ONCE = 4096


class LinearProbes(nn.Module):
    """A linear layer on the standardised features of each layer; `probes(batch)` returns named losses for training.

    Features are standardised with their mean and deviation over the training images, as the batch norm without affine
    parameters of MAE's linear probe does batch by batch. The loss is the sum over the layers, so that each layer
    learns as it would alone.

    Args:
        mean: `(layers, C)`.
        std: `(layers, C)`, above 0.
    """

    mean: Tensor
    std: Tensor
    metric_names = ("loss", "loss_per_layer", "accuracy")

    def __init__(self, mean: Tensor, std: Tensor, num_classes: int) -> None:
        super().__init__()
        num_layers, dim = mean.shape
        self.weight = nn.Parameter(torch.zeros(num_layers, dim, num_classes))
        self.bias = nn.Parameter(torch.zeros(num_layers, num_classes))
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def logits(self, features: Tensor) -> Tensor:
        """Returns `(B, layers, K)` for features `(B, layers, C)`."""
        return torch.einsum("blc,lck->blk", (features - self.mean) / self.std, self.weight) + self.bias

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns the summed `loss`, its mean a layer and the mean accuracy in 0-1, all 0-dim.

        Args:
            batch: `features` `(B, layers, C)` and `label` int64 `(B,)`.
        """
        logits = self.logits(batch["features"])
        labels = batch["label"][:, None].expand(logits.shape[:2])
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten()) * logits.shape[1]
        accuracy = (logits.argmax(dim=2) == labels).float().mean()
        return {"loss": loss, "loss_per_layer": loss.detach() / logits.shape[1], "accuracy": accuracy}

    @torch.no_grad()
    def accuracy(self, features: np.ndarray, labels: Tensor) -> Tensor:
        """Returns the share of right predictions of each layer, float64 `(layers,)`.

        Args:
            features: float32 `(N, layers, C)`.
            labels: int64 `(N,)`.
        """
        right = torch.zeros(len(self.weight), dtype=torch.float64)
        rows = max(1, ROWS_AT_ONCE // max(1, self.weight.shape[2] // 100))
        for start in range(0, len(features), rows):
            part = torch.from_numpy(np.array(features[start : start + rows])).to(self.weight.device)
            wanted = labels[start : start + rows, None].to(part.device)
            right += (self.logits(part).argmax(dim=2) == wanted).double().sum(dim=0).cpu()
        return right / len(features)


def statistics(features: np.ndarray) -> tuple[Tensor, Tensor]:
    """Returns mean and standard deviation over the images, float32 `(layers, C)` each; computed in float64, in blocks.

    Args:
        features: float32 `(N, layers, C)`.
    """
    mean = np.zeros(features.shape[1:])
    for start in range(0, len(features), ROWS_AT_ONCE):
        mean += features[start : start + ROWS_AT_ONCE].sum(axis=0, dtype=np.float64)
    mean /= len(features)
    variance = np.zeros_like(mean)
    for start in range(0, len(features), ROWS_AT_ONCE):
        variance += ((features[start : start + ROWS_AT_ONCE] - mean) ** 2).sum(axis=0)
    # A constant feature says nothing: divided by one instead of nearly nothing.
    std = np.sqrt(variance / len(features))
    std[std <= 1e-6 * np.abs(mean) + 1e-12] = 1.0
    return torch.from_numpy(mean).float(), torch.from_numpy(std).float()


def feature_batches(
    features: np.ndarray, labels: Tensor, batch_size: int, seed: int, start_step: int, total_steps: int
) -> Iterator[dict[str, Tensor]]:
    """Yields the batches of the training from a step on, in the order of all trainers.

    Args:
        features: float32 `(N, layers, C)`, may be mapped from a file.
        labels: int64 `(N,)`.
    """
    for keys in StepBatches(len(features), batch_size, seed, start_step, total_steps, 0, 1, 1):
        rows = np.array([index for _, index, _ in keys])
        yield {"features": torch.from_numpy(features[rows]), "label": labels[torch.from_numpy(rows)]}
