"""What the rows of the paper's ADE20K table share: BEiT's protocol on ADE20K.

160k steps of 16 crops of 512, resized by 0.5-2 of (2048, 512), AdamW 7e-4 with layer decay 0.65, warm-up 1500,
poly 1.0, sliding test window 512 with stride 341. The values are those of BEiT's upernet_beit_base_12_512_slide_160k,
the form for encoders that were pre-trained without labels; BEiT's code is XCiT's, the first author's.
"""

_base_ = ["./upernet.py", "./schedule.py", "./data.py"]

model = dict(
    backbone=dict(
        encoder="vit_base",
        pyramid="taps",  # after blocks 4, 6, 8, 12 at the encoder's width: UPerHead brings the FPN itself
        norm="SyncBN",  # BEiT's and XCiT's, between the two transposed convolutions of stride 4
        drop_path_rate=0.1,  # BEiT's
        img_size=512,  # positions are resized once, at the start
    ),
    decode_head=dict(channels=768),  # the width of ViT-B; rows of ViT-S keep it, so that the encoder alone differs
    test_cfg=dict(mode="slide"),
)
