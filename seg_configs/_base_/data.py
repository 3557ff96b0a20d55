"""Reading and augmentation. Folders and classes come from the command line (`--data`, `--classes`).

`SegImage` and `SegLabel` read with pillow: palette files are read as indices, never as colours.
`SegResize` is mmcv's Resize that leaves no side without a pixel, `SegPack` mmseg's PackSegInputs for such images too.
"""

img_size = 512  # of the training crop
layout = dict(  # see tools/segmentation/layout.py
    images="images/{split}", labels="annotations/{split}", image_suffix="", label_suffix="", names="", label_ids=[]
)
# Names, a data set that mmseg knows, or None: --classes, ROOT/classes.json, or ADE20K's 150 by its folder names.
classes = None
palette = None
reduce_zero_label = False  # True: label 0 means "ignore" and 1 is the first class
train_pipeline = [
    dict(type="SegImage"),
    dict(type="SegLabel"),
    dict(type="RandomResize", resize_type="SegResize", scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(512, 512), cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="SegPack"),
]
test_pipeline = [
    dict(type="SegImage"),
    dict(type="SegResize", scale=(2048, 512), keep_ratio=True),  # the image alone: predictions are scaled back
    dict(type="SegLabel"),
    dict(type="SegPack"),
]
tta = dict(ratios=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75), flip=True)  # of --tta: factors on the size of test_pipeline
use_tta = False  # True: as --tta
