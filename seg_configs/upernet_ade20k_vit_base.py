"""ADE20K, ViT-B, 160k updates of 16 images on one 80 GB GPU (PAPER.md section 5: SplitMask 45.7 mIoU).

python tools/train_seg.py seg_configs/upernet_ade20k_vit_base.py --data ADEChallengeData2016 \
    --weights encoder.safetensors --output DIR --precision bf16

The lr is sensitive: 7e-4 in BEiT, 1e-4 in mmseg's MAE config.
"""

_base_ = ["./_base_/upernet.py", "./_base_/schedule.py", "./_base_/data.py"]

model = dict(test_cfg=dict(mode="slide"))
