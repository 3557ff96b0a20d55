"""Every image once, at its own size, by a detector that is given back as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from det_configs.nuclei_tiny import recipe
from pretrain.data.sources import open_source
from pretrain.training.distributed import make_fabric
from tools.detection.detect import detect_all


class Remembering(nn.Module):
    def __init__(self, fails_at: int = -1) -> None:
        super().__init__()
        self.seen: list[tuple[tuple[int, ...], bool]] = []
        self.fails_at = fails_at

    def detect(self, image: Tensor, size: tuple[int, int]) -> dict[str, Any]:
        if len(self.seen) == self.fails_at:
            raise RuntimeError("out of memory")
        self.seen.append((tuple(image.shape), self.training))
        assert not torch.is_autocast_enabled("cpu")  # in float32, whatever the training computes in
        return {"size": size}


def run(detector: Remembering, image_folder) -> list[tuple[int, dict[str, Any]]]:
    images = open_source(image_folder)
    sizes = [(10 + i, 20 + i) for i in range(len(images))]
    return list(detect_all(make_fabric("bf16"), detector, images, sizes, recipe, workers=0))


def test_every_image_once_at_its_own_size(image_folder) -> None:
    detector = Remembering().train()
    found = run(detector, image_folder)
    assert found == [(i, {"size": (10 + i, 20 + i)}) for i in range(12)]
    assert detector.training and not any(training for _, training in detector.seen)
    # Images one at a time, RGB, none padded to another's size.
    assert all(shape[0] == 3 and len(shape) == 3 for shape, _ in detector.seen)


def test_a_failure_leaves_the_detector_as_it_was(image_folder) -> None:
    detector = Remembering(fails_at=1).train()
    with pytest.raises(RuntimeError, match="out of memory"):
        run(detector, image_folder)
    assert detector.training and len(detector.seen) == 1
    detector = Remembering().eval()
    run(detector, image_folder)
    assert not detector.training
