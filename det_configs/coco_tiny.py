"""80 real COCO images (all 80 classes): ViT-Ti at 256 px, for 2 CPU cores. Shows that everything runs; AP stays near 0.

python tools/train_det.py det_configs/coco_tiny.py --data COCO_TINY --weights none --output DIR
"""

import dataclasses

from det_configs.common.tiny import TINY

recipe = dataclasses.replace(TINY, anchor_sizes=(16, 32, 64, 128, 256), score_threshold=0.01)
