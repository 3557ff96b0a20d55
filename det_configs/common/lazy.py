"""A recipe as LazyConfig: the model of the detectron2 engine, and whole configs for detectron2's own tools.

Nothing here is a value of its own: what is not detectron2's structure comes from the recipe.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Any

from det_configs.common.recipe import DetRecipe

if TYPE_CHECKING:
    from omegaconf import DictConfig

COCO_IMAGES = 117_266
"""Images of COCO train2017 that detectron2 trains on: those with an object that is not a crowd."""


def lazy_config(recipe: DetRecipe) -> tuple[Any, Any, Any, Any, Any]:
    """Returns `model, dataloader, optimizer, lr_multiplier, train` for COCO, as detectron2's tools read them.

    Five times None where detectron2 has not been imported: then it is not its LazyConfig that reads the file, and the
    recipe alone is wanted.
    """
    if "detectron2" not in sys.modules:
        return None, None, None, None, None
    max_iter = recipe.total_steps(COCO_IMAGES // recipe.batch_size)
    train = {
        "output_dir": "./output",
        "init_checkpoint": "",  # the encoder's weights are the backbone's: model.backbone.weights
        "max_iter": max_iter,
        "amp": {"enabled": recipe.precision == "bf16"},
        "ddp": {"broadcast_buffers": False, "find_unused_parameters": False, "fp16_compression": False},
        "checkpointer": {"period": 5000, "max_to_keep": 2},
        "eval_period": recipe.eval_every or 5000,
        "log_period": 20,
        "device": "cuda",
    }
    return lazy_model(recipe), lazy_data(recipe), lazy_optimizer(recipe), lazy_schedule(recipe), train


def lazy_model(
    recipe: DetRecipe, num_classes: int = 80, weights: str | None = None, encoder_config: dict[str, Any] | None = None
) -> DictConfig:
    """Returns the detector on the encoder and its pyramid: (Cascade) Mask R-CNN, without masks Faster or Cascade R-CNN.

    Args:
        recipe: all values.
        num_classes: without background.
        weights: an encoder file.
        encoder_config: constructor arguments of the encoder, in place of the recipe's.
    """
    from detectron2.config import LazyCall as L
    from detectron2.layers import ShapeSpec
    from detectron2.modeling import anchor_generator, matcher, meta_arch, poolers, proposal_generator, roi_heads
    from detectron2.modeling.box_regression import Box2BoxTransform

    from splitmask_backbones.detectron2 import SplitMaskViTBackbone
    from splitmask_backbones.imagenet_stats import IMAGENET_MEAN, IMAGENET_STD

    channels, levels = recipe.out_channels, ["p2", "p3", "p4", "p5"]
    arguments = recipe.encoder_arguments() if encoder_config is None else encoder_config

    def pooler(output_size: int) -> DictConfig:
        scales = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
        return L(poolers.ROIPooler)(output_size=output_size, scales=scales, sampling_ratio=0, pooler_type="ROIAlignV2")

    def box_head() -> DictConfig:
        wide = recipe.box_head == "2fc"
        return L(roi_heads.FastRCNNConvFCHead)(
            input_shape=ShapeSpec(channels=channels, height=7, width=7),
            conv_dims=[] if wide else [channels] * 4,
            fc_dims=[recipe.box_head_width] * (2 if wide else 1),
            conv_norm="" if wide else "LN",
        )

    def box_predictor(weight: int, class_agnostic: bool) -> DictConfig:
        return L(roi_heads.FastRCNNOutputLayers)(
            input_shape=ShapeSpec(channels=recipe.box_head_width),
            box2box_transform=L(Box2BoxTransform)(weights=(weight, weight, weight // 2, weight // 2)),
            # That of roi_heads, also where it is overridden; the predictors of a cascade lie in a list below it.
            num_classes="${...num_classes}" if recipe.cascade else "${..num_classes}",
            cls_agnostic_bbox_reg=class_agnostic,
            test_score_thresh=recipe.score_threshold,
            test_nms_thresh=recipe.nms_threshold,
            test_topk_per_image=recipe.detections_per_image,
        )

    def roi_matcher(threshold: float) -> DictConfig:
        return L(matcher.Matcher)(thresholds=[threshold], labels=[0, 1], allow_low_quality_matches=False)

    heads = {
        "num_classes": num_classes,
        "batch_size_per_image": recipe.rois_per_image,
        "positive_fraction": recipe.roi_positive_fraction,
        "box_in_features": levels,
        "box_pooler": pooler(7),
    }
    mask_head = {
        "mask_in_features": levels,
        "mask_pooler": pooler(14),
        "mask_head": L(roi_heads.MaskRCNNConvUpsampleHead)(
            input_shape=ShapeSpec(channels=channels, width=14, height=14),
            num_classes="${..num_classes}",
            conv_dims=[recipe.mask_head_width] * (recipe.mask_head_convs + 1),
            conv_norm="" if recipe.mask_head_norm == "none" else recipe.mask_head_norm,
        ),
    }
    if recipe.masks:
        heads |= mask_head
    if recipe.cascade:
        stages = ((10, 0.5), (20, 0.6), (30, 0.7))  # detectron2's and ViTDet's
        head = L(roi_heads.CascadeROIHeads)(
            **heads,
            box_heads=[box_head() for _ in stages],
            box_predictors=[box_predictor(weight, class_agnostic=True) for weight, _ in stages],
            proposal_matchers=[roi_matcher(threshold) for _, threshold in stages],
        )
    else:
        head = L(roi_heads.StandardROIHeads)(
            **heads,
            box_head=box_head(),
            box_predictor=box_predictor(10, class_agnostic=False),
            proposal_matcher=roi_matcher(0.5),
        )
    return L(meta_arch.GeneralizedRCNN)(
        backbone=L(SplitMaskViTBackbone)(
            encoder=recipe.encoder or (None if encoder_config is None else "vit_small"),  # whose sizes all are given
            weights=weights,
            pyramid=recipe.pyramid,
            out_channels=channels,
            norm=recipe.pyramid_norm,
            square_pad=recipe.img_size if recipe.square_pad else 0,
            **arguments,
        ),
        proposal_generator=L(proposal_generator.RPN)(
            in_features=[*levels, "p6"],
            head=L(proposal_generator.StandardRPNHead)(
                in_channels=channels, num_anchors=len(recipe.aspect_ratios), conv_dims=[-1] * recipe.rpn_convs
            ),
            anchor_generator=L(anchor_generator.DefaultAnchorGenerator)(
                sizes=[[size] for size in recipe.anchor_sizes],
                aspect_ratios=list(recipe.aspect_ratios),
                strides=[4, 8, 16, 32, 64],
                offset=0.0,
            ),
            anchor_matcher=L(matcher.Matcher)(thresholds=[0.3, 0.7], labels=[0, -1, 1], allow_low_quality_matches=True),
            box2box_transform=L(Box2BoxTransform)(weights=[1.0, 1.0, 1.0, 1.0]),
            batch_size_per_image=recipe.rpn_batch,
            positive_fraction=0.5,
            pre_nms_topk=(recipe.rpn_pre_nms_train, recipe.rpn_pre_nms_test),
            post_nms_topk=(recipe.rpn_post_nms_train, recipe.rpn_post_nms_test),
            nms_thresh=0.7,
        ),
        roi_heads=head,
        pixel_mean=[255 * value for value in IMAGENET_MEAN],
        pixel_std=[255 * value for value in IMAGENET_STD],
        input_format="RGB",
    )


def lazy_data(recipe: DetRecipe) -> DictConfig:
    """Returns detectron2's loaders and evaluator for COCO 2017, with the recipe's sizes and augmentation."""
    import detectron2.data.transforms as T
    from detectron2.config import LazyCall as L
    from detectron2.data import (
        DatasetMapper,
        build_detection_test_loader,
        build_detection_train_loader,
        get_detection_dataset_dicts,
    )
    from detectron2.evaluation import COCOEvaluator
    from omegaconf import OmegaConf

    from det_configs.common.lazy_crop import FixedSizeCrop, RandomCrop

    size, (low, high) = recipe.img_size, recipe.scale_range
    if recipe.augment == "lsj":
        train = [
            L(T.ResizeScale)(min_scale=low, max_scale=high, target_height=size, target_width=size),
            # ViTDet's model pads to the square: with zeros behind the normalisation, as in evaluation.
            L(FixedSizeCrop)(crop_size=(size, size), pad=not recipe.square_pad),
        ]
        test_long_side = size
    else:
        sides = tuple(range(round(low * size), round(high * size) + 1, 32))
        long_side = round(recipe.max_long_side * size)

        def resize(short_sides: tuple[int, ...]) -> DictConfig:
            return L(T.ResizeShortestEdge)(short_edge_length=short_sides, sample_style="choice", max_size=long_side)

        train = [resize(sides)]
        if recipe.crop:
            crop = L(RandomCrop)(
                crop_type="absolute_range", crop_size=tuple(round(f * size) for f in recipe.crop_range)
            )
            before = [resize(tuple(round(factor * size) for factor in recipe.crop_scales)), crop]
            train.insert(0, L(T.RandomApply)(tfm_or_aug=L(T.AugmentationList)(augs=before), prob=recipe.crop))
        test_long_side = long_side
    flip = L(T.RandomFlip)(prob=recipe.flip, horizontal=True)
    dataloader = OmegaConf.create()
    dataloader.train = L(build_detection_train_loader)(
        dataset=L(get_detection_dataset_dicts)(names="coco_2017_train"),
        mapper=L(DatasetMapper)(
            is_train=True,
            augmentations=[flip, *train],
            image_format="RGB",
            use_instance_mask=recipe.masks,
            # A box that a crop cuts is drawn anew.
            recompute_boxes=recipe.masks and (recipe.augment == "lsj" or recipe.crop > 0),
        ),
        total_batch_size=recipe.batch_size,
        num_workers=4,
    )
    dataloader.test = L(build_detection_test_loader)(
        dataset=L(get_detection_dataset_dicts)(names="coco_2017_val", filter_empty=False),
        mapper=L(DatasetMapper)(
            is_train=False,
            augmentations=[L(T.ResizeShortestEdge)(short_edge_length=size, max_size=test_long_side)],
            image_format="RGB",
        ),
        num_workers=4,
    )
    dataloader.evaluator = L(COCOEvaluator)(dataset_name="${..test.dataset.names}")
    return dataloader


def lazy_optimizer(recipe: DetRecipe) -> DictConfig:
    """Returns AdamW over the project's groups, which follow its `lr` and `weight_decay`, overridden or not.

    `params.model` is set by detectron2's tools.
    """
    import torch
    from detectron2.config import LazyCall as L

    from splitmask_backbones.param_groups import param_groups

    return L(torch.optim.AdamW)(
        params=L(param_groups)(lr="${..lr}", weight_decay="${..weight_decay}", layer_decay=recipe.layer_decay),
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        betas=(0.9, recipe.beta2),
    )


def lazy_schedule(recipe: DetRecipe) -> DictConfig:
    """Returns the schedule; it follows `train.max_iter`, also when that is overridden."""
    from detectron2.config import LazyCall as L

    from det_configs.common.lazy_schedule import RecipeSchedule

    return L(RecipeSchedule)(recipe=dataclasses.asdict(recipe), max_iter="${train.max_iter}")
