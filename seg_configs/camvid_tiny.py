"""CamVid (367 + 101 road scenes, 11 classes), small enough for a CPU.

python tools/train_seg.py seg_configs/camvid_tiny.py --data CAMVID --weights FILE --output DIR
"""

_base_ = ["./_base_/upernet.py", "./_base_/schedule.py", "./_base_/data.py"]

model = dict(
    backbone=dict(encoder="vit_tiny", out_channels=96, drop_path_rate=0.0),
    decode_head=dict(in_channels=[96, 96, 96, 96], channels=64, num_classes=11),
    auxiliary_head=None,
)

img_size = 160
steps = 300
batch_size = 8
schedule = dict(warmup_fraction=0.1)
optim_wrapper = dict(optimizer=dict(lr=1e-3), paramwise_cfg=dict(decay_rate=0.75))
log_every = 10
save_every = 100

classes = [
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign-symbol",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
]
palette = [
    [128, 128, 128],
    [128, 0, 0],
    [192, 192, 128],
    [128, 64, 128],
    [60, 40, 222],
    [128, 128, 0],
    [192, 128, 128],
    [64, 64, 128],
    [64, 0, 128],
    [64, 64, 0],
    [0, 128, 192],
]
train_pipeline = [
    dict(type="SegImage"),
    dict(type="SegLabel"),
    dict(type="RandomResize", resize_type="SegResize", scale=(480, 360), ratio_range=(0.5, 1.25), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(160, 160), cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="SegPack"),
]
test_pipeline = [
    dict(type="SegImage"),
    dict(type="SegResize", scale=(480, 360), keep_ratio=True),
    dict(type="SegLabel"),
    dict(type="SegPack"),
]
