"""Images as tensors: augmented for training, with their targets; resized for evaluation."""

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from det_configs.common.recipe import DetRecipe
from pretrain.data.augment import to_tensor
from pretrain.training.loader import sample_rng
from tools.detection.coco import CocoSplit
from tools.detection.targets import Target, make_target
from tools.detection.transforms import evaluation_placement, training_placement


class TrainingImages(Dataset[tuple[Tensor, Target]]):
    """Augmented images with at least one object; indexed by `(epoch, index, repeat)` of `pretrain.training.loader`."""

    def __init__(self, split: CocoSplit, recipe: DetRecipe) -> None:
        # An image of crowds or of nothing teaches little, and its crowds would count as background.
        self.records = [image for image in split.images if not image.is_empty]
        self.images = split.image_list(self.records)
        self.place = training_placement(recipe)
        self.seed, self.with_masks = recipe.seed, recipe.masks

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[Tensor, Target]:
        """Returns uint8 `(3, H, W)` and what is to be found in it."""
        epoch, index, _ = key
        record = self.records[index]
        placement = self.place((record.height, record.width), sample_rng(self.seed, epoch, index))
        pixels = placement.image(self.images.read(index))
        return to_tensor(pixels), make_target(record, placement, self.with_masks)


def prepare(image: Image.Image, recipe: DetRecipe) -> Tensor:
    """Returns an image as the detector takes it in evaluation, uint8 `(3, H, W)`."""
    return to_tensor(evaluation_placement(recipe, (image.height, image.width)).image(image))


def collate(samples: list[tuple[Tensor, Target]]) -> tuple[list[Tensor], list[Target]]:
    """Returns images and targets as lists: both differ in size."""
    return [image for image, _ in samples], [target for _, target in samples]
