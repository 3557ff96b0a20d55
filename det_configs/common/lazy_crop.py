"""detectron2's random crops without shapely, with which its own cuts polygons."""

import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import CropTransform, TransformList


class CuttingCrop(CropTransform):
    """A crop that cuts polygons half-plane by half-plane (Sutherland and Hodgman 1974).

    Parts of a polygon that the crop separates stay joined by edges on its border. They cover no pixel, but one that
    runs through a corner of the crop makes the polygon's extent larger than that of its pixels.
    """

    def apply_polygons(self, polygons: list[np.ndarray]) -> list[np.ndarray]:
        """Returns what is left of the polygons, each float `(N, 2)` as x, y, in pixels of the crop."""
        cut = [cut_to(self.apply_coords(np.asarray(polygon, float)), self.w, self.h) for polygon in polygons]
        return [polygon for polygon in cut if len(polygon) > 2]


class RandomCrop(T.RandomCrop):
    """detectron2's, with `CuttingCrop`."""

    def get_transform(self, image: np.ndarray) -> CuttingCrop:
        """Returns the crop for an image `(H, W, C)`."""
        return _cutting(super().get_transform(image))


class FixedSizeCrop(T.FixedSizeCrop):
    """detectron2's (large-scale jitter), with `CuttingCrop`."""

    def get_transform(self, image: np.ndarray) -> TransformList:
        """Returns the crop of an image `(H, W, C)`, and the padding of what is smaller."""
        crop, *padding = super().get_transform(image).transforms
        return TransformList([_cutting(crop), *padding])


def _cutting(crop: CropTransform) -> CuttingCrop:
    return CuttingCrop(crop.x0, crop.y0, crop.w, crop.h)


def cut_to(polygon: np.ndarray, width: float, height: float) -> np.ndarray:
    """Returns the part of a polygon `(N, 2)` with 0 <= x <= width and 0 <= y <= height, `(M, 2)`; M may be 0."""
    for axis, limit, sign in ((0, 0.0, 1), (0, width, -1), (1, 0.0, 1), (1, height, -1)):
        depth = sign * (polygon[:, axis] - limit)  # at least 0 inside
        following, next_depth = np.roll(polygon, -1, axis=0), np.roll(depth, -1)
        kept: list[np.ndarray] = []
        for start, end, inside, ends_inside in zip(polygon, following, depth, next_depth, strict=True):
            if inside >= 0:
                kept.append(start)
            if (inside >= 0) != (ends_inside >= 0):
                crossing = start + (end - start) * (inside / (inside - ends_inside))
                crossing[axis] = limit
                kept.append(crossing)
        polygon = np.array(kept).reshape(-1, 2)
    return polygon
