"""Images and targets as tensors: augmented for training, resized for evaluation."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from det_configs.common.recipe import DetRecipe
from pretrain.training.loader import sample_rng
from tools.detection.coco import CocoSplit, ImageRecord
from tools.detection.rle import to_mask
from tools.detection.transforms import Placement, evaluation_placement, training_placement

Target = dict[str, Tensor]


class TrainingImages(Dataset[tuple[Tensor, Target]]):
    """Augmented images with at least one object; indexed by `(epoch, index, repeat)` of `pretrain.training.loader`."""

    def __init__(self, split: CocoSplit, recipe: DetRecipe) -> None:
        # An image of crowds or of nothing teaches little, and its crowds would count as background.
        self.records = [image for image in split.images if any(not i.crowd for i in image.instances)]
        self.images = split.image_list(self.records)
        self.place = training_placement(recipe)
        self.seed = recipe.seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[Tensor, Target]:
        """Returns uint8 `(3, H, W)` and the target: boxes int64 `(N, 4)`, labels int64 `(N,)`, masks `(N, H, W)`."""
        epoch, index, _ = key
        record = self.records[index]
        placement = self.place((record.height, record.width), sample_rng(self.seed, epoch, index))
        pixels = placement.image(self.images.read(index))
        return to_tensor(pixels), make_target(record, placement)


def prepare(image: Image.Image, recipe: DetRecipe) -> Tensor:
    """Returns an image as the detector takes it in evaluation, uint8 `(3, H, W)`."""
    return to_tensor(evaluation_placement(recipe, (image.height, image.width)).image(image))


def to_tensor(pixels: np.ndarray) -> Tensor:
    """Returns uint8 `(3, H, W)` of `(H, W, 3)`."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def make_target(record: ImageRecord, placement: Placement) -> Target:
    """Returns the objects that are left in the placed image; boxes are drawn tightly around the cropped masks.

    Boxes are whole pixels, kept as int64: Fabric's bf16 precision would round floats on their way to the model.
    Labels start at 1 (0 is the background). Crowds are left out.
    """
    boxes: list[tuple[int, int, int, int]] = []
    labels: list[int] = []
    masks: list[np.ndarray] = []
    for instance in record.instances:
        if instance.crowd or not placement.touches(instance.box):
            continue
        mask = placement.mask(to_mask(instance.segmentation, record.height, record.width))
        rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not rows.size:  # cropped away, or thinner than a pixel at this scale
            continue
        boxes.append((int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1))
        labels.append(instance.label + 1)
        masks.append(mask)
    shape = (0, *placement.output_size)
    return {
        "boxes": torch.tensor(boxes, dtype=torch.int64).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "masks": torch.from_numpy(np.stack(masks) if masks else np.zeros(shape, np.uint8)),
    }


def collate(samples: list[tuple[Tensor, Target]]) -> tuple[list[Tensor], list[Target]]:
    """Returns images and targets as lists: both differ in size."""
    return [image for image, _ in samples], [target for _, target in samples]
