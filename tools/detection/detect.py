"""From a trained detector and image files to detections in pixels of the files, whatever engine it is built with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from det_configs.common.recipe import DetRecipe
from pretrain.data.sources import ImageList
from pretrain.training.distributed import any_algorithm
from tools.common.shards import Prepared, shard_of
from tools.detection.dataset import prepare

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def detect_one(fabric: Fabric, detector: Any, image: Tensor, size: tuple[int, int]) -> dict[str, Any]:
    """Returns the detections, as of `Detector.detect`, in one image as `prepare` makes it.

    In float32 whatever the training's precision, as detectron2 evaluates: in bfloat16 the AP of some dozen images
    differs by up to 0.5.
    """
    with any_algorithm():  # without a backward pass RoIAlign adds in one order
        return detector.detect(fabric.to_device(image), size)


def detect_all(
    fabric: Fabric,
    detector: Any,
    images: ImageList,
    sizes: Sequence[tuple[int, int]],
    recipe: DetRecipe,
    workers: int,
    title: str = "evaluate",
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields `(index, detections)` of this process's share of the images; `sizes` are their `(H, W)`.

    One image at a time, so that no image's padding depends on its neighbours. Shows progress with the time left.
    """
    was_training = detector.training
    detector.eval()
    try:
        dataset = Prepared(images, partial(prepare, recipe=recipe))
        for index, image in shard_of(fabric, dataset, workers, title, batch_size=None):
            yield int(index), detect_one(fabric, detector, image, sizes[int(index)])
    finally:
        detector.train(was_training)
