"""Table 3, ViT-B, BEiT, COCO: published box AP 46.7 67.7 51.2, mask AP 41.8 65.0 44.6 (AP, AP50, AP75).

    torchrun --nproc-per-node 8 tools/train_det.py det_configs/coco_3x_vit_base_beit_coco.py --data COCO \
        --weights ENCODER --output DIR --precision bf16

Meant for 8 GPUs of 40 GB, two images each; not run by us yet.
ENCODER: BEiT's weights as an encoder file of this project.
"""

from det_configs.common.coco import PAPER_3X_BASE, experiment

recipe, model, dataloader, optimizer, lr_multiplier, train = experiment(PAPER_3X_BASE)
