"""Images for an evaluation: each process loads its share of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor
from torch.utils.data import BatchSampler, Dataset

from pretrain.data.sources import ImageList
from pretrain.training.progress import tracked
from pretrain.training.workers import Batches

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Prepared(Dataset[tuple[int, Tensor]]):
    """Images as a model takes them: `(index, prepare(image))`."""

    def __init__(self, images: ImageList, prepare: Callable[[Image.Image], Tensor]) -> None:
        self.images, self.prepare = images, prepare

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        """Returns the index and the image."""
        return index, self.prepare(self.images.read(index))


def shard_of(
    fabric: Fabric,
    dataset: Any,
    workers: int,
    title: str,
    batch_size: int | None,
    start: int = 0,
    collate_fn: Callable[[list[Any]], Any] | None = None,
) -> Iterator[Any]:
    """Yields the batches of this process's share of a data set, with progress and the time left.

    Args:
        dataset: asked for by index.
        batch_size: items per batch; None for single ones.
        collate_fn: from a list of items to a batch; None for torch's own way.
    """
    keys: Any = range(start + fabric.global_rank, len(dataset), fabric.world_size)
    if batch_size is not None:
        keys = BatchSampler(keys, batch_size, drop_last=False)
    pinned = fabric.device.type == "cuda"
    with closing(Batches(dataset, keys, workers, collate_fn=collate_fn, pin_memory=pinned)) as batches:
        yield from tracked(batches, len(batches), title, fabric.is_global_zero)
