"""Table 3, ViT-S, BEiT, COCO: published box AP 44.7 66.3 48.8, mask AP 40.2 63.1 43.2 (AP, AP50, AP75).

    torchrun --nproc-per-node 8 tools/train_det.py det_configs/coco_3x_vit_small_beit_coco.py --data COCO \
        --weights ENCODER --output DIR --precision bf16

Meant for 8 GPUs of 24 GB, two images each; not run by us yet.
ENCODER: BEiT's weights as an encoder file of this project.
"""

from det_configs.common.coco import PAPER_3X, experiment

recipe, model, dataloader, optimizer, lr_multiplier, train = experiment(PAPER_3X)
