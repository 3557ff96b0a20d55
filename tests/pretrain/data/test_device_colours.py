"""Changes of colour for a batch at once, against Pillow: the same bytes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain.data.augment import BLUR, GRAY, SOLARISE, draw_colours, three_augment, to_tensor
from pretrain.data.device_colours import change_colours
from tests.helpers.image_files import smooth


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    made = [smooth(48, 48), rng.integers(0, 256, (48, 48, 3), dtype=np.uint8), np.full((48, 48, 3), 255, np.uint8)]
    return [Image.fromarray(pixels) for pixels in [*made, rng.integers(0, 2, (48, 48, 3), dtype=np.uint8) * 255]]


@pytest.mark.parametrize("change", [GRAY, SOLARISE, BLUR])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_bytes_are_pillows(change: int, device: str) -> None:
    rng = np.random.default_rng(change)
    images = [image for image in pictures() for _ in range(30)]
    drawn = [replace(draw_colours(rng), change=change) for _ in images]
    drawn[0] = replace(drawn[0], radius=0.1, factors=(1.0, 1.0, 1.0))
    drawn[1] = replace(drawn[1], radius=2.0, factors=(0.7, 1.3, 1.0))
    expected = torch.stack([to_tensor(three_augment(image, one)) for image, one in zip(images, drawn, strict=True)])
    before = torch.stack([to_tensor(image) for image in images])
    found = change_colours(before.to(device), drawn).cpu()
    assert found.dtype == torch.uint8 and torch.equal(found, expected)
    assert (found != before).float().mean() > 0.3


def test_each_image_of_a_batch_gets_its_own() -> None:
    rng = np.random.default_rng(3)
    images = pictures() * 6
    drawn = [draw_colours(rng) for _ in images]
    assert {one.change for one in drawn} == {GRAY, SOLARISE, BLUR} and len({one.order for one in drawn}) == 6
    batch = torch.stack([to_tensor(image) for image in images])
    one_by_one = [change_colours(image[None], [one]) for image, one in zip(batch, drawn, strict=True)]
    assert torch.equal(change_colours(batch, drawn), torch.cat(one_by_one))
