"""What the configs for a machine without a GPU share: a small encoder, narrow heads, few RoIs. Ours."""

from det_configs.common.recipe import DetRecipe

# ViTDet's 512 RoIs and 4-convolution box head cost 20 s per step on two cores: 64 RoIs and two narrow layers do not.
TINY = DetRecipe(
    encoder="vit_tiny",
    out_channels=128,
    drop_path=0.0,
    box_head_width=256,
    mask_head_convs=2,
    mask_head_width=128,
    rpn_pre_nms_train=500,
    rpn_post_nms_train=300,
    rpn_pre_nms_test=500,
    rpn_post_nms_test=300,
    rois_per_image=64,
    img_size=256,
    augment="lsj",
    scale_range=(0.8, 1.5),
    batch_size=4,
    epochs=None,
    steps=200,
    lr=5e-4,
    layer_decay=1.0,  # as the paper; with 0.8 the lower blocks of a random init hardly move in 200 steps
    clip_grad=1.0,
    schedule="cosine",
    warmup_fraction=0.1,
)
