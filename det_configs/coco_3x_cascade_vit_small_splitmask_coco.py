"""Cascade Mask R-CNN under Table 3's protocol, ViT-S, SplitMask on COCO: not in the paper, no published AP.

    torchrun --nproc-per-node 8 tools/train_det.py det_configs/coco_3x_cascade_vit_small_splitmask_coco.py --data COCO \
        --weights ENCODER --output DIR --precision bf16

Meant for 8 GPUs of 24 GB, two images each, with detectron2; not run by us yet.
"""

from det_configs.common.coco import PAPER_3X, experiment

recipe, model, dataloader, optimizer, lr_multiplier, train = experiment(PAPER_3X, cascade=True)
