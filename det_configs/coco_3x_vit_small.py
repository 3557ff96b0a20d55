"""SplitMask's COCO protocol (Table 3): ViT-S, tapped pyramid, sin-cos positions, 36 epochs. 8 GPUs of 24 GB or more.

    torchrun --nproc-per-node 8 tools/train_det.py det_configs/coco_3x_vit_small.py --data COCO_ROOT \
        --weights encoder.safetensors --output DIR --precision bf16

Expected with COCO pre-training, as published: box AP 45.3, mask AP 40.6; random init 38.3 and 35.6. Not yet run here.
"""

from det_configs.common.recipe import DetRecipe

recipe = DetRecipe(encoder="vit_small", pyramid="tapped", positions="sincos")
