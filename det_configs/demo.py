"""The coins of `make demo` for 2 CPU cores: a ViT of 6 blocks, 96 wide, at 160 px under the paper's pyramid of taps.

python tools/train_det.py det_configs/demo.py --data runs/demo/data/coco --weights none --output DIR
"""

import dataclasses

from det_configs.common.tiny import TINY

recipe = dataclasses.replace(
    TINY,
    embed_dim=96,
    depth=6,
    # Only the last map, as in ViTDet's pyramid, is what a short pre-training has made most of its own task.
    pyramid="tapped",
    pyramid_norm="BN",
    out_channels=64,
    box_head_width=128,
    mask_head_width=64,
    img_size=160,
    scale_range=(0.8, 1.1),
    anchor_sizes=(16, 32, 64, 128, 192),
    rois_per_image=32,
    roi_positive_fraction=0.5,
    rpn_post_nms_test=100,
    detections_per_image=30,  # a scene has seven coins at most
    steps=400,
    lr=1e-3,
)
