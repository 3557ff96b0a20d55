"""Table 3, ViT-B, SplitMask, COCO: published box AP 46.8 67.9 51.5, mask AP 42.1 65.3 45.1 (AP, AP50, AP75).

    torchrun --nproc-per-node 8 tools/train_det.py det_configs/coco_3x_vit_base_splitmask_coco.py --data COCO \
        --weights ENCODER --output DIR --precision bf16

Meant for 8 GPUs of 40 GB, two images each; not run by us yet.
ENCODER: encoder.safetensors of `tools/pretrain.py --recipe coco --model vit_base --data COCO/train2017`.
Sinusoidal positions are MAE's table here; positions=fourier takes XCiT's (see common/coco.py).
"""

from det_configs.common.coco import PAPER_3X_BASE, experiment

recipe, model, dataloader, optimizer, lr_multiplier, train = experiment(PAPER_3X_BASE)
