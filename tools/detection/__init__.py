"""Detection data, engines and evaluation behind `tools/train_det.py`."""
