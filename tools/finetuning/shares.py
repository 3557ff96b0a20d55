"""Images for an evaluation: each process loads its share of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pretrain.data.sources import ImageList
from pretrain.training.loader import start_worker
from pretrain.training.progress import tracked

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


def share_of(
    fabric: Fabric, dataset: Any, workers: int, title: str, batch_size: int | None, start: int = 0, **options: Any
) -> Iterator[Any]:
    """Yields the batches of this process's share of a data set, with progress and the time left.

    Args:
        dataset: asked for by index.
        batch_size: items per batch; None for single ones.
        **options: of torch's `DataLoader`.
    """
    own: Any = range(start + fabric.global_rank, len(dataset), fabric.world_size)
    init = start_worker if workers else None
    pinned = fabric.device.type == "cuda"
    loader: Any = DataLoader(
        dataset, batch_size, sampler=own, num_workers=workers, worker_init_fn=init, pin_memory=pinned, **options
    )
    yield from tracked(loader, len(loader), title, fabric.is_global_zero)
