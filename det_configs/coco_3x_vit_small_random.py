"""Table 3, ViT-S, random initialisation: published box AP 38.3 60.1 41.4, mask AP 35.6 57.1 37.7 (AP, AP50, AP75).

    torchrun --nproc-per-node 8 tools/train_det.py det_configs/coco_3x_vit_small_random.py --data COCO \
        --weights none --output DIR --precision bf16

Meant for 8 GPUs of 24 GB, two images each; not run by us yet.
"""

from det_configs.common.coco import PAPER_3X, experiment

recipe, model, dataloader, optimizer, lr_multiplier, train = experiment(PAPER_3X)
