"""Cityscapes, UperNet, ViT-B (no published number: ours). ROOT holds leftImg8bit/ and gtFine/ as they are unpacked.

    python tools/train_seg.py seg_configs/cityscapes_80k_vit_base.py --data CITYSCAPES \
        --weights encoder.safetensors --output DIR --precision bf16

The labels are read from *_labelIds.png: the *_labelTrainIds.png of cityscapesscripts are not needed. Meant for one
GPU of 80 GB; not run by us yet.
"""

_base_ = ["./_base_/ade20k.py"]

model = dict(backbone=dict(img_size=768))
img_size = 768
steps = 80000
batch_size = 8
optim_wrapper = dict(optimizer=dict(lr=3.5e-4))  # the base's, by the linear rule
classes = "cityscapes"
layout = dict(
    images="leftImg8bit/{split}",
    labels="gtFine/{split}",
    image_suffix="_leftImg8bit.png",
    label_suffix="_gtFine_labelIds.png",
    label_ids=[7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33],
)
train_pipeline = [
    dict(type="SegImage"),
    dict(type="SegLabel"),
    dict(type="RandomResize", resize_type="SegResize", scale=(2048, 1024), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(768, 768), cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="SegPack"),
]
test_pipeline = [
    dict(type="SegImage"),
    dict(type="SegResize", scale=(2048, 1024), keep_ratio=True),
    dict(type="SegLabel"),
    dict(type="SegPack"),
]
