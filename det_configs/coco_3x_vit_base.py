"""SplitMask's COCO protocol (Table 3): as coco_3x_vit_small.py, with ViT-B. 8 GPUs of 40 GB or more.

    torchrun --nproc-per-node 8 tools/train_det.py det_configs/coco_3x_vit_base.py --data COCO_ROOT \
        --weights encoder.safetensors --output DIR --precision bf16

Expected with COCO pre-training, as published: box AP 46.8, mask AP 42.1; random init 40.7 and 37.1. Not yet run here.
"""

import dataclasses

from det_configs.coco_3x_vit_small import recipe as small

recipe = dataclasses.replace(small, encoder="vit_base")
