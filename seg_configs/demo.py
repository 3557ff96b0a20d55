"""The demo's synthetic scenes (about 160 px); classes come from ROOT/classes.json. `make demo` runs it."""

_base_ = ["./_base_/upernet.py", "./_base_/schedule.py", "./_base_/data.py"]

model = dict(
    backbone=dict(encoder="vit_tiny", out_channels=64, drop_path_rate=0.0),
    decode_head=dict(in_channels=[64, 64, 64, 64], channels=48),
    auxiliary_head=None,
)

img_size = 128
steps = 300
batch_size = 8
schedule = dict(warmup_fraction=0.1)
optim_wrapper = dict(optimizer=dict(lr=1e-3), paramwise_cfg=dict(decay_rate=1.0))
class_weights = "median_frequency"  # four fifths of the pixels are background: without, nothing else is learned in time
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
