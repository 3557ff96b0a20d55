"""The protocols that the COCO configs share: SplitMask's (Table 3; Swin's values) and ViTDet's.

The number of GPUs changes neither batch nor lr: batch_size counts the images of all of them (--batch-size), and the lr
follows it linearly unless it is given. Too few GPUs for a batch: accumulate=N.
"""

import dataclasses
from typing import Any

from det_configs.common.lazy import lazy_config
from det_configs.common.recipe import DetRecipe

# Everything else of the protocol is a default of DetRecipe: 36 epochs, AdamW 1e-4, 480-800 pixels, ...
PAPER_3X = DetRecipe(pyramid="tapped", positions="sincos")

# The length of the longer schedule is not published: 6x is ours, with the last 9 and 3 epochs of 3x at its end.
PAPER_6X = dataclasses.replace(PAPER_3X, epochs=72, milestones=(63 / 72, 69 / 72))

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
