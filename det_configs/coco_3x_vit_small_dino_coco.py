"""Table 3, ViT-S, DINO, COCO: published box AP 43.7 65.5 47.7, mask AP 39.6 62.3 42.3 (AP, AP50, AP75).

    torchrun --nproc-per-node 8 tools/train_det.py det_configs/coco_3x_vit_small_dino_coco.py --data COCO \
        --weights ENCODER --output DIR --precision bf16

Meant for 8 GPUs of 24 GB, two images each; not run by us yet.
ENCODER: a DINO pre-training on COCO as an encoder file of this project.
"""

from det_configs.common.coco import PAPER_3X, experiment

recipe, model, dataloader, optimizer, lr_multiplier, train = experiment(PAPER_3X)
