"""The coins of `make demo` (160 px); classes come from ROOT/classes.json. `make demo` runs it."""

_base_ = ["./_base_/upernet.py", "./_base_/schedule.py", "./_base_/data.py"]

model = dict(
    backbone=dict(encoder="vit_tiny", embed_dim=96, depth=6, out_channels=64, drop_path_rate=0.0),
    decode_head=dict(in_channels=[64, 64, 64, 64], channels=48),
    auxiliary_head=None,
)

img_size = 128
steps = 500
batch_size = 8
schedule = dict(warmup_fraction=0.1)
optim_wrapper = dict(optimizer=dict(lr=1e-3), paramwise_cfg=dict(decay_rate=1.0))
class_weights = "median_frequency"  # most pixels are background: without, nothing else is learned in time
log_every = 10
save_every = 50

train_pipeline = [
    dict(type="SegImage"),
    dict(type="SegLabel"),
    dict(type="RandomCrop", crop_size=(128, 128)),
    dict(type="RandomFlip", prob=0.5),
    dict(type="SegPack"),
]
test_pipeline = [dict(type="SegImage"), dict(type="SegLabel"), dict(type="SegPack")]
