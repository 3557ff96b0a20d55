"""Table 3, ViT-B, random initialisation: published box AP 40.7 62.7 44.2, mask AP 37.1 59.1 39.4 (AP, AP50, AP75).

    torchrun --nproc-per-node 8 tools/train_det.py det_configs/coco_3x_vit_base_random.py --data COCO \
        --weights none --output DIR --precision bf16

Meant for 8 GPUs of 40 GB, two images each; not run by us yet.
"""

from det_configs.common.coco import PAPER_3X_BASE, experiment

recipe, model, dataloader, optimizer, lr_multiplier, train = experiment(PAPER_3X_BASE)
