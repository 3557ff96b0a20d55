"""What a start does before its first step."""

from pretrain.data.sources import ImageList
from pretrain.training.distributed import make_fabric
from tools.benchmarks import starts


def test_a_second_start_trusts_what_is_known(tmp_path, monkeypatch):
    decoded = []
    real = ImageList.decode
    monkeypatch.setattr(ImageList, "decode", lambda self, index: decoded.append(index) or real(self, index))
    seconds = starts.start_seconds(7, tmp_path, 0, make_fabric("32", "cpu"))
    assert len(seconds) == 6 and all(value > 0 for value in seconds.values())
    assert len(decoded) == 7 * 3  # first starts, and another run without a cache
