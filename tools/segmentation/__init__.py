"""The parts of tools/train_seg.py, along the data: layout, classes, labels, check, dataset, model, task, evaluate."""

from splitmask_backbones import _mmcv_stub
from splitmask_backbones._yapf_cache import import_yapf

_mmcv_stub.install()  # before any module here imports mmseg, which cannot be imported with mmcv-lite alone
import_yapf()
