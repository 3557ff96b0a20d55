"""The parts of tools/train_seg.py, along the data: labels, pairs, check, dataset, loop, results, predict."""

from splitmask_backbones import _mmcv_stub

_mmcv_stub.install()  # before any module here imports mmseg, which cannot be imported with mmcv-lite alone
