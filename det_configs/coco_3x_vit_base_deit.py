"""Table 3, ViT-B, DeiT, ImageNet with labels: published box AP 45.5 67.9 49.2, mask AP 41.0 64.6 43.8 (AP, AP50, AP75).

    torchrun --nproc-per-node 8 tools/train_det.py det_configs/coco_3x_vit_base_deit.py --data COCO \
        --weights ENCODER --output DIR --precision bf16

Meant for 8 GPUs of 40 GB, two images each; not run by us yet.
ENCODER: DeiT's published weights as an encoder file of this project.
"""

from det_configs.common.coco import PAPER_3X_BASE, experiment

recipe, model, dataloader, optimizer, lr_multiplier, train = experiment(PAPER_3X_BASE)
