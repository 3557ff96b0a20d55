"""DINO's crops: their sizes, their seeds, and how often colours change."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from pretrain.data import multicrop
from pretrain.data.multicrop import MultiCrop, change_colours, shift_hue


def picture():
    rng = np.random.default_rng(3)
    return Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((120, 90), Image.Resampling.BICUBIC)


def test_crops():
    augment = MultiCrop(224, 0.4, 8, 16)
    large, small = augment(picture(), np.random.default_rng(0)).values()
    assert large.shape == (2, 3, 224, 224) and small.shape == (8, 3, 96, 96) and small.dtype == torch.uint8
    again = augment(picture(), np.random.default_rng(0))
    assert torch.equal(large, again["large"]) and torch.equal(small, again["small"])
    assert not torch.equal(large[0], large[1]) and not torch.equal(small[0], small[1])
    assert not torch.equal(large, augment(picture(), np.random.default_rng(1))["large"])
    assert MultiCrop(128, 0.4, 0, 16)(picture(), np.random.default_rng(0))["small"].shape == (0, 3, 48, 48)


def test_colours_change_as_often_as_they_should():
    crop = picture().resize((16, 16))
    rng = np.random.default_rng(0)
    plain = [np.asarray(change_colours(crop, rng, blur=0.0, solarise=0.0)) for _ in range(400)]
    same = np.mean([np.array_equal(item, np.asarray(crop)) for item in plain])
    gray = np.mean([(item == item[..., :1]).all() for item in plain])
    assert same == pytest.approx(0.2 * 0.8, abs=0.06)  # neither jitter nor gray
    assert gray == pytest.approx(0.2, abs=0.06)


def colours_of_dino(image, rng, blur, solarise):
    """DINO's colours by Pillow: brightness and contrast 0.4, saturation 0.2, hue 0.1, gray, blur of 0.1 to 2 pixels."""
    jitter, gray, blurred, solarised = [rng.random() < share for share in (0.8, 0.2, blur, solarise)]
    order = rng.permutation(4)
    factors = [rng.uniform(low, high) for low, high in ((0.6, 1.4), (0.6, 1.4), (0.8, 1.2))]
    turn, radius = round(255 * rng.uniform(-0.1, 0.1)), rng.uniform(0.1, 2)
    for change in order if jitter else ():
        if change < 3:
            kind = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[change]
            image = kind(image).enhance(factors[change])
        else:
            hue, saturation, value = image.convert("HSV").split()
            hue = hue.point([(level + turn) % 256 for level in range(256)])
            image = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    image = ImageOps.grayscale(image).convert("RGB") if gray else image
    image = image.filter(ImageFilter.GaussianBlur(radius)) if blurred else image
    return ImageOps.solarize(image) if solarised else image  # what is 128 or brighter is inverted


@pytest.mark.parametrize(("blur", "solarise"), [(1.0, 0.0), (0.0, 1.0), (0.1, 0.2)])
def test_colours_are_dinos(blur, solarise):
    noise = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)  # the faintest blur shows
    crop, changed = Image.fromarray(noise), 0
    for seed in range(60):
        found = change_colours(crop, np.random.default_rng(seed), blur, solarise)
        assert found.tobytes() == colours_of_dino(crop, np.random.default_rng(seed), blur, solarise).tobytes(), seed
        changed += found.tobytes() != colours_of_dino(crop, np.random.default_rng(seed), 0.0, 0.0).tobytes()
    assert changed == 60 if 1.0 in (blur, solarise) else 7 <= changed <= 27  # 0.28 of them


def test_hue_turns_red_towards_yellow():
    red = Image.new("RGB", (2, 2), (255, 0, 0))
    assert np.asarray(shift_hue(red, 1 / 6))[0, 0] == pytest.approx([255, 255, 0], abs=6)
    assert np.array_equal(np.asarray(shift_hue(red, 0.0)), np.asarray(red))


def test_each_crop_has_its_share_of_the_area_and_its_changes(monkeypatch):
    """Large crops from 0.4 on, small ones up to it; blurred always, 0.1 and 0.5, and the second solarised."""
    seen = []

    def changed(image, rng, blur, solarise):
        seen.append((image.size, blur, solarise))
        return image

    monkeypatch.setattr(multicrop, "change_colours", changed)
    augment = MultiCrop(224, 0.4, 2, 16)
    augment(picture(), np.random.default_rng(0))
    assert seen == [((224, 224), 1.0, 0.0), ((224, 224), 0.1, 0.2), *[((96, 96), 0.5, 0.0)] * 2]
    assert (augment.large.scale, augment.small.scale) == ((0.4, 1.0), (0.05, 0.4))
