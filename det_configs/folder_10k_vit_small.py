"""Your own pictures in COCO format, Mask R-CNN, ViT-S at 640 px: some hundred labelled images or more, and one GPU.

    python tools/train_det.py det_configs/folder_10k_vit_small.py --data ROOT --weights ENCODER --output DIR \
        --precision bf16

The length is in steps, so that few images are seen often enough for the new heads, and the layer decay moves the
pre-trained blocks less than these. The pyramid is the paper's, from four blocks. Meant for a GPU of 24 GB; where that
does not hold it (--rehearse says so), add accumulate=2. Not run by us yet: a place to begin, with --lr to be tuned.
"""

from det_configs.common.recipe import DetRecipe

recipe = DetRecipe(
    pyramid="tapped",
    img_size=640,
    augment="lsj",
    scale_range=(0.5, 1.5),
    epochs=None,
    steps=10_000,
    layer_decay=0.75,
    clip_grad=1.0,
    schedule="cosine",
    warmup_fraction=0.05,
    eval_every=1000,
)
