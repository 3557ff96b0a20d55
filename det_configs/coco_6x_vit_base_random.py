"""Table 3, ViT-B, random init, dagger (longer): published box AP 43.0 64.2 46.9, mask AP 38.8 61.3 41.6.

    torchrun --nproc-per-node 8 tools/train_det.py det_configs/coco_6x_vit_base_random.py --data COCO \
        --weights none --output DIR --precision bf16

Meant for 8 GPUs of 40 GB, two images each; not run by us yet.
"""

from det_configs.common.coco import PAPER_6X_BASE, experiment

recipe, model, dataloader, optimizer, lr_multiplier, train = experiment(PAPER_6X_BASE)
