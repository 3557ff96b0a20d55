"""The colours of a branch, against plain statements, and the jitter that takes them away."""

import numpy as np
import pytest
import torch

from pretrain.methods.branch_colors import QUANTILES, colors, jitter_colors
from tests.helpers.splitmask import build, make_batch


def test_jitter_is_a_line_of_its_own_for_every_image_and_channel():
    torch.manual_seed(0)
    image = torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)], dim=3).repeat(2000, 1, 1, 1, 1).flatten(3)
    jittered = jitter_colors(image, 0.3)
    zeros, ones = jittered[..., ::2], jittered[..., 1::2]
    assert torch.equal(zeros, zeros[..., :1, :1].expand_as(zeros)) and torch.equal(
        ones, ones[..., :1, :1].expand_as(ones)
    )
    shift, factor = zeros[..., 0, 0], (ones - zeros)[..., 0, 0]
    assert 0.69 < factor.min() < 0.71 and 1.29 < factor.max() < 1.31 and abs(factor.mean() - 1) < 0.01
    assert 0.8 < shift.abs().max() < 0.9  # 0.3 of a channel, 0.6 of all
    uncorrelated = torch.corrcoef(factor.T)[0, 1]
    assert abs(uncorrelated) < 0.05 and torch.corrcoef(shift.T)[0, 1] == pytest.approx(0.8, abs=0.05)  # 4 : 1
    assert torch.equal(jitter_colors(image, 0.0), image)


def test_colors_of_what_a_branch_sees():
    method, batch = build(), make_batch()
    image = method.normalize(batch["image"])
    with torch.no_grad():
        seen = method.observe(batch)
    for branch in "ab":
        for i in range(3):
            patches = [image[i, :, 16 * (p // 4) :, 16 * (p % 4) :][:, :16, :16] for p in batch[f"ids_{branch}"][i]]
            expected = np.quantile(torch.stack(patches).numpy(), QUANTILES, axis=(0, 2, 3)).T.flatten()
            np.testing.assert_allclose(seen[f"color_{branch}"][i], expected, atol=1e-5)


def test_colors_of_large_crops():
    image = torch.arange(3.0).reshape(1, 3, 1, 1).expand(23, 3, 496, 496)  # more values than torch.quantile takes
    seen = colors(image, torch.arange(31 * 31).expand(23, -1), 16)
    assert torch.equal(seen, torch.arange(3.0).repeat_interleave(len(QUANTILES)).expand(23, -1))
