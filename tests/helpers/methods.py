"""The baselines that can be tried here."""

from importlib.util import find_spec

import pytest

METHODS = [
    "beit",
    pytest.param("dino", marks=pytest.mark.skipif(find_spec("lightly") is None, reason="lightly is not installed")),
]
