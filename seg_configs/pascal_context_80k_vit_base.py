"""Pascal Context, 59 classes, UperNet, ViT-B (no published number: ours). ROOT is VOCdevkit/VOC2010.

    python tools/train_seg.py seg_configs/pascal_context_80k_vit_base.py --data VOCdevkit/VOC2010 \
        --weights encoder.safetensors --output DIR --precision bf16

ROOT needs SegmentationClassContext/ and ImageSets/SegmentationContext/, which mmsegmentation's
tools/dataset_converters/pascal_context.py makes. Meant for one GPU of 80 GB; not run by us yet.
"""

_base_ = ["./_base_/ade20k.py"]

model = dict(backbone=dict(img_size=480))
img_size = 480
steps = 80000
classes = "pcontext"
reduce_zero_label = True  # 0 is "background", which the 59 classes leave out
layout = dict(images="JPEGImages", labels="SegmentationClassContext", names="ImageSets/SegmentationContext/{split}.txt")
train_pipeline = [
    dict(type="SegImage"),
    dict(type="SegLabel"),
    dict(type="RandomResize", resize_type="SegResize", scale=(520, 520), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(480, 480), cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="SegPack"),
]
test_pipeline = [
    dict(type="SegImage"),
    dict(type="SegResize", scale=(520, 520), keep_ratio=True),
    dict(type="SegLabel"),
    dict(type="SegPack"),
]
