"""What the tests of the tools share."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Returns a folder of 20 pictures for pre-training."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(20):
        low = rng.integers(0, 256, (6, 7, 3), dtype=np.uint8)
        Image.fromarray(low).resize((90 + i, 80), Image.Resampling.BICUBIC).save(folder / f"{i:02d}.jpg")
    return folder
