"""ADE20K, UperNet, ViT-B, SplitMask as ade20k_160k_vit_base_splitmask_ade20k, tested at six scales, each flipped too.

    python tools/train_seg.py seg_configs/ade20k_160k_vit_base_splitmask_ade20k_ms.py --data ADEChallengeData2016 \
        --weights encoder.safetensors --output DIR --precision bf16

Where the single-scale run exists, `--eval-only --tta` on its --output gives the same number without a training. Meant
for one GPU of 80 GB; not run by us yet. No multi-scale mIoU is published.
"""

_base_ = ["./ade20k_160k_vit_base_splitmask_ade20k.py"]

use_tta = True
