"""mmcv's `Resize` with labels that lie where the image does."""

from typing import Any

import cv2
from mmcv import rescale_size
from mmcv.transforms import Resize
from mmseg.registry import TRANSFORMS


@TRANSFORMS.register_module()
class SegResize(Resize):
    """mmcv's `Resize` with labels that lie where the image does, and for images of any shape.

    mmcv looks a label up at the corner of a pixel and the image around its centre: labels would lie half a pixel right
    of and below the image. Where keeping the shape would leave a side of no pixel, it gets one.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Returns the results with the resized image and label map."""
        if self.keep_ratio or self.scale is None:
            height, width = results["img"].shape[:2]
            if self.scale is None:
                size = tuple(int(side * f + 0.5) for side, f in zip((width, height), self.scale_factor, strict=True))
            else:
                size = rescale_size((width, height), self.scale)
            if min(size) < 1:
                thin = SegResize(scale=(max(1, size[0]), max(1, size[1])), interpolation=self.interpolation)
                return thin.transform(results)
        return super().transform(results)

    def _resize_seg(self, results: dict[str, Any]) -> None:
        labels = results.get("gt_seg_map")
        if labels is not None:
            height, width = results["img"].shape[:2]
            results["gt_seg_map"] = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
