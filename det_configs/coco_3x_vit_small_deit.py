"""Table 3, ViT-S, DeiT, ImageNet with labels: published box AP 44.2 66.6 47.9, mask AP 40.1 63.2 42.7 (AP, AP50, AP75).

    torchrun --nproc-per-node 8 tools/train_det.py det_configs/coco_3x_vit_small_deit.py --data COCO \
        --weights ENCODER --output DIR --precision bf16

Meant for 8 GPUs of 24 GB, two images each; not run by us yet.
ENCODER: DeiT's published weights as an encoder file of this project.
"""

from det_configs.common.coco import PAPER_3X, experiment

recipe, model, dataloader, optimizer, lr_multiplier, train = experiment(PAPER_3X)
