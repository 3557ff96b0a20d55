"""Test-time augmentation: an image at several scales, each flipped too; the mean of the probabilities decides."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.structures import PixelData
from torch import Tensor, nn


def tta_pipeline(pipeline: list[dict[str, Any]], ratios: Sequence[float], flip: bool) -> list[dict[str, Any]]:
    """Returns a test pipeline that yields every view of an image.

    mmseg's scales are factors on the image as it is, or (in configs named "ms") not there at all; here they are factors
    on the size that the config tests at, as in BEiT's protocol. Where it tests at the image's own size, both are one.

    Args:
        pipeline: a config's `test_pipeline`.
        ratios: factors on the size of its resize.
        flip: whether each view comes flipped as well.
    """
    resizes = [i for i, step in enumerate(pipeline) if step["type"] in ("SegResize", "Resize")]
    at = resizes[0] if resizes else 1  # after the image is read
    before, after = pipeline[:at], pipeline[at + 1 :] if resizes else pipeline[at:]
    views = []
    for ratio in ratios:
        step: dict[str, Any] = copy.deepcopy(pipeline[at]) if resizes else {"type": "SegResize"}
        if step.get("scale") is not None:
            step["scale"] = tuple(max(1, round(side * ratio)) for side in step["scale"])
        else:
            step["scale_factor"] = ratio * step.get("scale_factor", 1.0)
        views.append(step)
    flips = [{"type": "RandomFlip", "prob": 0.0}, {"type": "RandomFlip", "prob": 1.0}][: 1 + flip]
    return [*before, {"type": "TestTimeAug", "transforms": [views, flips, *([step] for step in after)]}]


class MeanOfViews(nn.Module):
    """A segmentor whose predictions are the mean over all views; it holds the probabilities of one view at a time."""

    def __init__(self, segmentor: nn.Module) -> None:
        super().__init__()
        self.segmentor: Any = segmentor

    @torch.no_grad()
    def test_step(self, data: dict[str, Any]) -> list[Any]:
        """Returns one sample an image.

        Args:
            data: `inputs` and `data_samples`, each a list of views of lists of images, as `TestTimeAug` gives them.
        """
        total: list[Tensor] = []
        samples: list[Any] = []
        for inputs, given in zip(data["inputs"], data["data_samples"], strict=True):
            batch = {"inputs": list(inputs), "data_samples": list(given)}
            samples = self.segmentor.test_step(batch)
            # mmseg turns and scales every view back; one channel alone is a probability already.
            logits = [sample.seg_logits.data for sample in samples]
            parts = [part.softmax(dim=0) if len(part) > 1 else part for part in logits]
            total = [a + b for a, b in zip(total, parts, strict=True)] if total else parts
        for sample, part in zip(samples, total, strict=True):
            mean = part / len(data["inputs"])
            if len(mean) > 1:
                labels = mean.argmax(dim=0, keepdim=True)
            else:
                labels = (mean > self.segmentor.decode_head.threshold).to(mean)
            sample.set_data({"pred_sem_seg": PixelData(data=labels), "seg_logits": PixelData(data=mean)})
        return samples
