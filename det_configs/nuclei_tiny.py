"""Nuclei (Data Science Bowl 2018, one class): ViT-Ti at 256 px, for 2 CPU cores.

    python tools/train_det.py det_configs/nuclei_tiny.py --data ../shared/data/nuclei --weights none --output DIR

Nuclei are small and many: small anchors, more detections an image than COCO's 100.
"""

import dataclasses

from det_configs.common.tiny import TINY

recipe = dataclasses.replace(
    TINY,
    anchor_sizes=(8, 16, 32, 64, 128),
    roi_positive_fraction=0.5,
    rpn_post_nms_test=500,
    detections_per_image=200,
)
