"""ADE20K, UperNet, ViT-B, DeiT on ImageNet with labels: published mIoU 46.1 (the ADE20K table).

    python tools/train_seg.py seg_configs/ade20k_160k_vit_base_deit.py --data ADEChallengeData2016 \
        --weights deit.safetensors --output DIR --precision bf16

--weights: DeiT's ViT-B, turned into an encoder file. Meant for one GPU of 80 GB; not run by us yet.
The lr is sensitive: compare --lr 1e-4, --lr 3e-4 and --lr 7e-4 (the default, BEiT's).
"""

_base_ = ["./_base_/ade20k.py"]
