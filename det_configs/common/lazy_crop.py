"""detectron2's random crop without shapely, which its own needs to cut polygons."""

import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import CropTransform


class ShiftingCrop(CropTransform):
    """A crop whose polygons are moved and not cut: masks are read within boxes, and boxes end at the image."""

    def apply_polygons(self, polygons: list[np.ndarray]) -> list[np.ndarray]:
        """Returns the polygons, each float `(N, 2)` as x, y, in pixels of the crop."""
        return [self.apply_coords(polygon) for polygon in polygons]


class RandomCrop(T.RandomCrop):
    """detectron2's, with `ShiftingCrop`."""

    def get_transform(self, image: np.ndarray) -> ShiftingCrop:
        """Returns the crop for an image `(H, W, C)`."""
        crop = super().get_transform(image)
        return ShiftingCrop(crop.x0, crop.y0, crop.w, crop.h)
