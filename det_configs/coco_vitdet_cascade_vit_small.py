"""ViTDet's protocol, Cascade Mask R-CNN, ViT-S: no published AP for ViT-S.

    torchrun --nproc-per-node 64 tools/train_det.py det_configs/coco_vitdet_cascade_vit_small.py --data COCO \
        --weights ENCODER --output DIR

Meant for 64 images of 1024 x 1024 per step on GPUs of 40 GB or more, with detectron2; on 8 GPUs add
accumulate=8. Not run by us yet.
"""

from det_configs.common.coco import VITDET, experiment

recipe, model, dataloader, optimizer, lr_multiplier, train = experiment(VITDET, encoder="vit_small", cascade=True)
