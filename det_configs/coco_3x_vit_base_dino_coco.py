"""Table 3, ViT-B, DINO, COCO: published box AP 43.1 64.4 46.9, mask AP 38.9 61.4 41.4 (AP, AP50, AP75).

    torchrun --nproc-per-node 8 tools/train_det.py det_configs/coco_3x_vit_base_dino_coco.py --data COCO \
        --weights ENCODER --output DIR --precision bf16

Meant for 8 GPUs of 40 GB, two images each; not run by us yet.
ENCODER: a DINO pre-training on COCO as an encoder file of this project.
"""

from det_configs.common.coco import PAPER_3X_BASE, experiment

recipe, model, dataloader, optimizer, lr_multiplier, train = experiment(PAPER_3X_BASE)
