"""Classes of images by their nearest neighbours among labelled ones: a measure of features without training."""

import torch
import torch.nn.functional as F
from torch import Tensor

QUERIES_AT_ONCE = 512
KNOWN_AT_ONCE = 65_536


@torch.no_grad()
def knn_votes(
    known: Tensor, labels: Tensor, queries: Tensor, num_classes: int, k: int = 20, temperature: float = 0.07
) -> Tensor:
    """Returns the votes for each class, `(Q, num_classes)`: the largest is the prediction.

    The `k` most similar known features by cosine vote for their class with `exp(similarity / temperature)` (Wu et al.
    2018; DINO's evaluation), here divided by the nearest one's vote: any temperature is finite, and which class wins
    stays. Computed in blocks, so that memory grows with neither number of images.

    Args:
        known: float `(N, C)`, any length of the vectors.
        labels: int64 `(N,)`, values in `[0, num_classes)`.
        queries: float `(Q, C)`.
        num_classes: classes.
        k: neighbours; all where there are fewer.
        temperature: above 0; small ones let the nearest neighbours decide.
    """
    k = min(k, len(known))
    known = F.normalize(known.float(), dim=1)
    votes = torch.zeros(len(queries), num_classes, device=known.device)
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        block = F.normalize(queries[start : start + QUERIES_AT_ONCE].float(), dim=1)
        best = torch.full((len(block), 0), 0.0, device=known.device)
        voters = torch.zeros((len(block), 0), dtype=torch.int64, device=known.device)
        for first in range(0, len(known), KNOWN_AT_ONCE):
            part = block @ known[first : first + KNOWN_AT_ONCE].T
            found = part.topk(min(k, part.shape[1]), dim=1)
            best, voters = torch.cat([best, found.values], 1), torch.cat([voters, labels[found.indices + first]], 1)
            if best.shape[1] > k:
                best, places = best.topk(k, dim=1)
                voters = voters.gather(1, places)
        weights = ((best - best.amax(dim=1, keepdim=True)) / temperature).exp()
        votes[start : start + len(block)].scatter_add_(1, voters, weights)
    return votes
