"""Table 3, ViT-S, SplitMask, COCO: published box AP 45.3 66.9 49.4, mask AP 40.6 63.6 43.5 (AP, AP50, AP75).

    torchrun --nproc-per-node 8 tools/train_det.py det_configs/coco_3x_vit_small_splitmask_coco.py --data COCO \
        --weights ENCODER --output DIR --precision bf16

Meant for 8 GPUs of 24 GB, two images each; not run by us yet.
ENCODER: encoder.safetensors of `tools/pretrain.py --recipe coco --model vit_small --data COCO/train2017`.
Sinusoidal positions are MAE's table here; positions=fourier takes XCiT's (see common/coco.py).
"""

from det_configs.common.coco import PAPER_3X, experiment

recipe, model, dataloader, optimizer, lr_multiplier, train = experiment(PAPER_3X)
