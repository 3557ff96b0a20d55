"""ViTDet's protocol, Mask R-CNN, ViT-B: detectron2 reports box AP 51.6, mask AP 45.9 from MAE on ImageNet.

    torchrun --nproc-per-node 64 tools/train_det.py det_configs/coco_vitdet_mask_vit_base.py --data COCO \
        --weights ENCODER --output DIR

Meant for 64 images of 1024 x 1024 per step on GPUs of 40 GB or more; on 8 GPUs add accumulate=8. Not run by us yet.
"""

from det_configs.common.coco import VITDET, experiment

recipe, model, dataloader, optimizer, lr_multiplier, train = experiment(VITDET, encoder="vit_base")
