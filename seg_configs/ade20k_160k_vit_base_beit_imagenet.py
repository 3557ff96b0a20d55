"""ADE20K, UperNet, ViT-B, BEiT on ImageNet: published mIoU 45.6 (the ADE20K table).

    python tools/train_seg.py seg_configs/ade20k_160k_vit_base_beit_imagenet.py --data ADEChallengeData2016 \
        --weights beit.safetensors --output DIR --precision bf16

--weights: BEiT's ViT-B, turned into an encoder file. Meant for one GPU of 80 GB; not run by us yet.
The lr is sensitive: compare --lr 1e-4, --lr 3e-4 and --lr 7e-4 (the default, BEiT's).
"""

_base_ = ["./_base_/ade20k.py"]
