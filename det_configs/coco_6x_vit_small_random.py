"""Table 3, ViT-S, random init, dagger (longer): published box AP 42.8 64.5 45.6, mask AP 39.1 61.5 41.7.

    torchrun --nproc-per-node 8 tools/train_det.py det_configs/coco_6x_vit_small_random.py --data COCO \
        --weights none --output DIR --precision bf16

Meant for 8 GPUs of 24 GB, two images each; not run by us yet.
"""

from det_configs.common.coco import PAPER_6X, experiment

recipe, model, dataloader, optimizer, lr_multiplier, train = experiment(PAPER_6X)
