"""The synthetic scenes of `make demo`: ViT-Ti at 192 px, for 2 CPU cores.

python tools/train_det.py det_configs/demo.py --data runs/demo/data/coco --weights none --output DIR
"""

import dataclasses

from det_configs.common.tiny import TINY

recipe = dataclasses.replace(
    TINY,
    img_size=192,
    anchor_sizes=(16, 32, 64, 128, 192),
    rois_per_image=32,
    roi_positive_fraction=0.5,
    rpn_post_nms_test=100,
    detections_per_image=30,  # a scene has a dozen shapes
    steps=200,
)
