"""What the rows of the paper's ADE20K table share: BEiT's protocol on ADE20K.

160k steps of 16 crops of 512, resized by 0.5-2 of (2048, 512), AdamW 7e-4 with layer decay 0.65, warm-up 1500,
poly 1.0, sliding test window 512 with stride 341. The taps with an FPN are the paper's pyramid, drop path is BEiT's.
"""

_base_ = ["./upernet.py", "./schedule.py", "./data.py"]

model = dict(
    backbone=dict(encoder="vit_base", pyramid="tapped", img_size=512),  # positions are resized once, at the start
    test_cfg=dict(mode="slide"),
)
