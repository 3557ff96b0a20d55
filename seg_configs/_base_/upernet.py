"""UperNet on the encoder and its pyramid, BEiT's protocol.

Filled in late by tools/train_seg.py: `num_classes`, `in_channels` (the backbone's `out_channels`, with pyramid="taps"
the encoder's width), the size that crops are padded to and the sliding window (both from `img_size`).
"""

# The second one and the runner serve mmseg's own tools/train.py, with PYTHONPATH=. and --cfg-options data_root=ROOT.
custom_imports = dict(imports=["splitmask_backbones.mmseg", "tools.segmentation.mmengine_runner"])
runner_type = "SplitMaskRunner"
default_scope = "mmseg"

norm_cfg = dict(type="BN", requires_grad=True)  # synchronised where there are several GPUs
model = dict(
    type="SlidingEncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
    ),
    backbone=dict(
        type="SplitMaskViT", encoder="vit_base", pyramid="simple", out_channels=256, norm="LN", drop_path_rate=0.1
    ),
    decode_head=dict(
        type="UPerHead",
        in_channels=[256, 256, 256, 256],
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=512,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=dict(
        type="FCNHead",
        in_channels=256,
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=0.4),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),  # or mode="slide": windows of img_size
)
slide_stride = 2 / 3  # of the window, as 341 of 512 in BEiT's protocol
