"""The global generators of Python and NumPy, that libraries' augmentations draw from, for the length of one call."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@contextmanager
def global_generators(seed: int, numpy_seed: int | np.ndarray | None = None) -> Iterator[None]:
    """Within it, Python's and NumPy's global generators start from seeds; afterwards they go on as before.

    timm, mmcv and mmseg draw from them: without this, what an image becomes would depend on all that was loaded before.

    Args:
        seed: of Python's.
        numpy_seed: of NumPy's, a number below 2^32 or a uint32 array; by default the other one, modulo 2^32.
    """
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed % 2**32 if numpy_seed is None else numpy_seed)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
