"""ADE20K, UperNet, ViT-S, SplitMask on ADE20K's training images: no mIoU is published (the ADE20K table).

    python tools/train_seg.py seg_configs/ade20k_160k_vit_small_splitmask_ade20k.py --data ADEChallengeData2016 \
        --weights encoder.safetensors --output DIR --precision bf16

--weights: the encoder of tools/pretrain.py --recipe ade20k --model vit_small.
Meant for one GPU of 40 GB; not run by us yet.
The lr is sensitive: compare --lr 1e-4, --lr 3e-4 and --lr 7e-4 (the default, BEiT's).
"""

_base_ = ["./_base_/ade20k.py"]

model = dict(backbone=dict(encoder="vit_small"))
