"""The protocols that the COCO configs share: SplitMask's (Table 3; Swin's values) and ViTDet's.

Where the paper is silent ("as in XCiT", "Swin's hyper-parameters"), the value is that of the first author's detection
code, which is XCiT's. One is a choice, because the paper says no more than "sinusoidal": positions="sincos" is MAE's
fixed table, positions="fourier" what XCiT has, sines relative to the image's size through a learned projection.

The number of GPUs changes neither batch nor lr: batch_size counts the images of all of them (--batch-size), and the lr
follows it linearly unless it is given. Too few GPUs for a batch: accumulate=N.
"""

import dataclasses
from typing import Any

from det_configs.common.lazy import lazy_config
from det_configs.common.recipe import DetRecipe

# Everything else of the protocol is a default of DetRecipe: 36 epochs, AdamW 1e-4, 480-800 pixels, ...
PAPER_3X = DetRecipe(
    encoder="vit_small",
    pyramid="tapped",
    # Between the transposed convolutions, as XCiT. accumulate=N makes its batch N times smaller: "LN" does not mind.
    pyramid_norm="SyncBN",
    # MAE's: "sinusoidal" in the plain sense, and nothing to learn in 36 epochs that pre-training has not seen.
    positions="sincos",
    # XCiT's for its model of this width and depth; it drops every block at this rate, here the last one has it.
    drop_path=0.05,
    # "Multi-scale training" is, in Swin's and in XCiT's code alike, DETR's: every second image is cropped on the way.
    crop=0.5,
)

# XCiT has no model of ViT-B's width and depth: BEiT's drop path.
PAPER_3X_BASE = dataclasses.replace(PAPER_3X, encoder="vit_base", drop_path=0.1)

# The length of the longer schedule is not published: 6x is ours, with the last 9 and 3 epochs of 3x at its end.
LONGER: dict[str, Any] = {"epochs": 72, "milestones": (63 / 72, 69 / 72)}
PAPER_6X = dataclasses.replace(PAPER_3X, **LONGER)
PAPER_6X_BASE = dataclasses.replace(PAPER_3X_BASE, **LONGER)

# Li et al. 2022 for ViT-B, as detectron2's projects/ViTDet has it; for ViT-S the same values are ours.
VITDET = DetRecipe(
    window_size=14,
    window_block_indexes=(0, 1, 3, 4, 6, 7, 9, 10),
    use_rel_pos=True,
    rpn_convs=2,
    box_head="4conv1fc",
    mask_head_norm="LN",
    img_size=1024,
    augment="lsj",
    square_pad=True,  # relative positions and windows know no other size
    scale_range=(0.1, 2.0),
    batch_size=64,
    epochs=100,
    layer_decay=0.7,
    weight_decay=0.1,
    milestones=(163889 / 184375, 177546 / 184375),
    warmup_fraction=250 / 184375,
    precision="bf16",
)


def experiment(protocol: DetRecipe, **values: Any) -> tuple[Any, Any, Any, Any, Any, Any]:
    """Returns what a config file defines: `recipe` for this project's tools, and the five names of a LazyConfig.

    Args:
        protocol: one of the above.
        **values: fields of `DetRecipe` in which the experiment differs from it.
    """
    recipe = dataclasses.replace(protocol, **values)
    return recipe, *lazy_config(recipe)
