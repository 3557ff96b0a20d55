"""ADE20K, UperNet, ViT-B, BEiT on ADE20K's training images: published mIoU 45.6 (the ADE20K table).

    python tools/train_seg.py seg_configs/ade20k_160k_vit_base_beit_ade20k.py --data ADEChallengeData2016 \
        --weights encoder.safetensors --output DIR --precision bf16

--weights: the encoder of a pre-training with --method beit. Meant for one GPU of 80 GB; not run by us yet.
The lr is sensitive: compare --lr 1e-4, --lr 3e-4 and --lr 7e-4 (the default, BEiT's).
"""

_base_ = ["./_base_/ade20k.py"]
