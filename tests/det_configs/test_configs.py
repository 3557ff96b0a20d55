"""Every file of det_configs/: builds at full size with each engine, takes a step when small, and is a LazyConfig."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from det_configs.common.recipe import DetRecipe
from splitmask_backbones.param_groups import param_groups
from splitmask_backbones.pyramid import LayerNorm2d, SyncBatchNorm
from tests.helpers.groups import expected_decay, expected_layer
from tools.detection.config import CONFIG_DIR, load_config
from tools.detection.engines import build_detector
from tools.detection.targets import Target
from tools.detection.transforms import evaluation_placement

PATHS = sorted(path for path in CONFIG_DIR.glob("*.py") if path.stem != "__init__")
ENGINES = ["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)]
SMALL = {
    "encoder": "vit_tiny",
    "out_channels": 8,
    "box_head_width": 8,
    "mask_head_width": 8,
    "mask_head_convs": 1,
    "rois_per_image": 8,
    "rpn_post_nms_train": 20,
    "img_size": 96,
    "drop_path": 0.0,
}


def needs(recipe: DetRecipe, engine: str) -> None:
    if recipe.cascade and engine == "torchvision":
        pytest.skip("torchvision has no Cascade R-CNN")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_builds_at_full_size(path: Path, engine: str) -> None:
    recipe = load_config(str(path))
    needs(recipe, engine)
    with torch.device("meta"):
        detector = build_detector(engine, recipe, 80)
    width = recipe.embed_dim or {"vit_tiny": 192, "vit_small": 384, "vit_base": 768}[recipe.encoder]
    assert detector.encoder.embed_dim == width and detector.encoder.depth == (recipe.depth or 12)
    paper = path.stem.startswith(("coco_3x", "coco_6x"))
    assert (detector.encoder.positions == "sincos") == paper and (not paper or recipe.pyramid == "tapped")
    placed = [name for group in param_groups(detector, 1.0, 0.1, recipe.layer_decay) for name in group["names"]]
    assert sorted(placed) == sorted(name for name, _ in detector.named_parameters())


def objects() -> tuple[list[torch.Tensor], list[Target]]:
    """Returns two random images with one object each."""
    masks = torch.zeros(1, 96, 96, dtype=torch.uint8)
    masks[:, 10:60, 20:80] = 1
    target = Target(torch.tensor([[20.0, 10, 80, 60]]), torch.tensor([1]), masks)
    return [torch.randint(0, 256, (3, 96, 96), dtype=torch.uint8) for _ in range(2)], [target, target]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_takes_a_step_when_small(path: Path, engine: str) -> None:
    recipe = load_config(str(path))
    needs(recipe, engine)
    torch.manual_seed(0)
    detector = build_detector(engine, recipe.override(SMALL), 2)
    losses = detector(objects())
    assert set(losses) == set(detector.metric_names) and torch.isfinite(losses["loss"])
    torch.testing.assert_close(losses["loss"], sum(v for k, v in losses.items() if k != "loss"))
    losses["loss"].backward()
    groups = param_groups(detector, recipe.lr, recipe.weight_decay, recipe.layer_decay)
    before = {name: parameter.detach().clone() for name, parameter in detector.named_parameters()}
    torch.optim.AdamW(groups, eps=1e-30).step()
    depth = detector.encoder.depth
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        # AdamW's first step is the lr in the direction of the gradient, whatever its size.
        lr = recipe.lr * recipe.layer_decay ** (depth + 1 - expected_layer(name, depth))
        kept = before[name] * (1 - lr * recipe.weight_decay * expected_decay(name, parameter.ndim))
        moved, rounding = (parameter - kept).abs().max().item(), 2e-7 * kept.abs().max().item()
        assert moved == pytest.approx(lr, rel=0.01, abs=rounding), name
    found = detector.eval().detect(objects()[0][0], (48, 192))
    assert found["boxes"].shape == (len(found["masks"]), 4)


def test_rows_of_table_3_differ_from_the_protocol_in_the_encoder_alone() -> None:
    for path in PATHS:
        if path.stem.startswith("coco_3x_vit") and "splitmask" not in path.stem:
            whole = load_config(f"coco_3x_{path.stem.split('_')[2]}_{path.stem.split('_')[3]}_splitmask_coco")
            assert load_config(str(path)) == whole, path
    longer = load_config("coco_6x_vit_small_random")
    assert dataclasses.replace(longer, epochs=36, milestones=(27 / 36, 33 / 36)) == load_config(
        "coco_3x_vit_small_random"
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_parts_of_the_paper_that_are_choices(engine: str) -> None:
    recipe = load_config("coco_3x_vit_small_splitmask_coco").override(SMALL)
    for values, kind in (({}, SyncBatchNorm), ({"pyramid_norm": "LN", "positions": "fourier"}, LayerNorm2d)):
        detector = build_detector(engine, recipe.override(values), 2)
        assert isinstance(detector.model.backbone.pyramid.resamples[0][1], kind)
        assert (detector.encoder.pos_proj is not None) == ("positions" in values)


@pytest.mark.parametrize(("name", "norms"), [("coco_vitdet_mask_vit_small", 4), ("coco_3x_vit_small_random", 0)])
def test_vitdets_heads_alone_have_norms(name: str, norms: int) -> None:
    with torch.device("meta"):
        heads = build_detector("torchvision", load_config(name), 80).model.roi_heads
    for head in (heads.box_head, heads.mask_head):
        assert sum(isinstance(module, LayerNorm2d) for module in head.modules()) == norms


@pytest.mark.parametrize("engine", ENGINES)
def test_vitdet_evaluates_in_the_square_that_it_was_trained_on(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_config("coco_vitdet_mask_vit_small").override({**SMALL, "window_size": 4})
    assert recipe.square_pad and not load_config("nuclei_tiny").square_pad
    detector = build_detector(engine, recipe, 2).eval()
    sizes = []
    forward = detector.encoder.forward_maps

    def forward_maps(images: torch.Tensor) -> list[torch.Tensor]:
        sizes.append(tuple(images.shape[-2:]))
        return forward(images)

    monkeypatch.setattr(detector.encoder, "forward_maps", forward_maps)
    placement = evaluation_placement(recipe, (480, 640))
    assert placement.output_size == (72, 96)
    found = detector.detect(torch.zeros(3, *placement.output_size, dtype=torch.uint8), (480, 640))
    assert sizes == [(96, 96)] and (found["boxes"][:, 3] <= 480).all()


@pytest.mark.detectron2
def test_detectron2s_own_loader_crops_as_ours() -> None:
    """The augmentations of the LazyConfig: how often, to which sizes, and where an object goes."""
    import detectron2.data.transforms as T
    import numpy as np
    from detectron2.config import instantiate

    from det_configs.common.lazy import lazy_data
    from det_configs.common.lazy_crop import CuttingCrop

    recipe = load_config("coco_3x_vit_small_splitmask_coco")
    augmentations = instantiate(lazy_data(recipe).train.mapper).augmentations
    np.random.seed(0)  # noqa: NPY002 (detectron2 draws from it)
    num_crops = 0
    for _ in range(60):
        given = T.AugInput(np.zeros((480, 640, 3), np.uint8), boxes=np.array([[100.0, 50, 400, 300]]))
        transforms = augmentations(given)
        height, width = given.image.shape[:2]
        assert min(height, width) <= 800 and max(height, width) <= 1333 and min(height, width) >= 480
        cuts = [t for t in transforms.transforms if isinstance(t, CuttingCrop)]
        num_crops += len(cuts)
        for cut in cuts:
            assert 384 <= cut.w <= 600 and 384 <= cut.h <= 600
        polygon = np.array([[100.0, 50], [400, 50], [400, 300]])
        moved = transforms.apply_polygons([polygon.copy()])  # without shapely
        if not cuts:
            assert np.allclose(moved[0], transforms.apply_coords(polygon.copy()))
        for part in moved:
            assert (part >= -1e-6).all() and (part <= (width + 1e-6, height + 1e-6)).all()
    assert 18 <= num_crops <= 42


@pytest.mark.detectron2
def test_vitdets_model_pads_and_its_loader_does_not() -> None:
    """The model pads with zeros behind the normalisation, in training as in evaluation, as in ViTDet's own config."""
    import detectron2.data.transforms as T
    import numpy as np
    from detectron2.config import instantiate

    from det_configs.common.lazy import lazy_data

    for name, pads in (("coco_vitdet_mask_vit_base", False), ("coco_tiny", True)):
        recipe = load_config(name)
        assert recipe.augment == "lsj" and recipe.square_pad != pads
        augmentations = instantiate(lazy_data(recipe).train.mapper).augmentations
        sides = set()
        np.random.seed(0)  # noqa: NPY002 (detectron2 draws from it)
        for _ in range(20):
            given = T.AugInput(np.zeros((48, 64, 3), np.uint8))
            augmentations(given)
            sides.add(min(given.image.shape[:2]))
        assert (sides == {recipe.img_size}) == pads and max(sides) <= recipe.img_size


@pytest.mark.detectron2
@pytest.mark.parametrize("name", ["coco_3x_vit_small_splitmask_coco", "coco_vitdet_cascade_vit_base"])
def test_lazy_config_trains_with_detectron2s_own_trainer(name: str, tmp_path: Path) -> None:
    import detectron2.data  # noqa: F401 (the files are LazyConfigs where detectron2 has been imported)
    from detectron2.config import LazyConfig, instantiate
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.datasets import register_coco_instances
    from detectron2.engine import SimpleTrainer, hooks

    from tests.helpers.det_data import write_root

    cfg: Any = LazyConfig.load(str(CONFIG_DIR / f"{name}.py"))
    per_epoch = 117_266 // cfg.dataloader.train.total_batch_size
    assert cfg.train.max_iter == (36 if "3x" in name else 100) * per_epoch
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    assert (tmp_path / "config.yaml").exists() and not (tmp_path / "config.yaml.pkl").exists()
    root = write_root(tmp_path / "data")
    register_coco_instances(name, {}, str(root / "annotations/instances_train.json"), str(root / "train"))
    try:
        overrides = ["train.max_iter=3", "dataloader.train.total_batch_size=2", "dataloader.train.num_workers=0"]
        overrides += [f"dataloader.train.dataset.names={name}", "model.roi_heads.batch_size_per_image=8"]
        overrides += ["model.backbone.encoder=vit_tiny", "model.backbone.img_size=64", "model.roi_heads.num_classes=2"]
        overrides += ["optimizer.lr=3e-4", "optimizer.weight_decay=0.2"]
        cfg = LazyConfig.apply_overrides(cfg, overrides)
        cfg.model.backbone.square_pad = min(cfg.model.backbone.square_pad, 96)
        for augmentation in cfg.dataloader.train.mapper.augmentations:
            if "short_edge_length" in augmentation:
                augmentation.short_edge_length = (64,)
            if "target_height" in augmentation:
                augmentation.target_height = augmentation.target_width = 96
            if "crop_size" in augmentation:
                augmentation.crop_size = (96, 96)
        model = instantiate(cfg.model)
        cfg.optimizer.params.model = model
        optimizer = instantiate(cfg.optimizer)
        assert max(group["lr"] for group in optimizer.param_groups) == 3e-4
        assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.2}
        predictors = model.roi_heads.box_predictor
        for predictor in predictors if isinstance(predictors, torch.nn.ModuleList) else [predictors]:
            assert predictor.num_classes == 2
        assert model.roi_heads.mask_head.predictor.out_channels == 2
        peak = [group["lr"] for group in optimizer.param_groups]
        trainer = SimpleTrainer(model, instantiate(cfg.dataloader.train), optimizer)
        trainer.register_hooks([hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier))])
        before = model.backbone.encoder.patch_embed.proj.weight.detach().clone()
        trainer.train(0, cfg.train.max_iter)
        assert not torch.equal(before, model.backbone.encoder.patch_embed.proj.weight)
        # the schedule follows the overridden length: after the last milestone a hundredth of the peak
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([lr / 100 for lr in peak])
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
