"""Cascade Mask R-CNN under Table 3's protocol, ViT-B, SplitMask on COCO: not in the paper, no published AP.

    torchrun --nproc-per-node 8 tools/train_det.py det_configs/coco_3x_cascade_vit_base_splitmask_coco.py --data COCO \
        --weights ENCODER --output DIR --precision bf16

Meant for 8 GPUs of 40 GB, two images each, with detectron2; not run by us yet.
"""

from det_configs.common.coco import PAPER_3X_BASE, experiment

recipe, model, dataloader, optimizer, lr_multiplier, train = experiment(PAPER_3X_BASE, cascade=True)
