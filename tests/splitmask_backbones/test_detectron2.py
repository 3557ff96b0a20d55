"""The detectron2 adapter: stock YAML configs, pixels, strict weights, the same maps as everywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("detectron2", reason="detectron2 is not installed (PyPI does not hold it)")

from detectron2 import model_zoo
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyCall, get_cfg, instantiate
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances

from splitmask_backbones import create_encoder, save_encoder, torchvision
from splitmask_backbones.detectron2 import ENCODER_ARGUMENTS, SplitMaskViTBackbone, add_splitmask_config
from splitmask_backbones.errors import UserError
from splitmask_backbones.imagenet_stats import IMAGENET_MEAN, IMAGENET_STD
from splitmask_backbones.param_groups import param_groups
from tests.helpers.det_data import write_root

pytestmark = pytest.mark.detectron2

SMALL = {"embed_dim": 24, "depth": 4, "num_heads": 3}
MASK_RCNN = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"
STOCK = [
    "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml",
    MASK_RCNN,
    "Misc/cascade_mask_rcnn_R_50_FPN_3x.yaml",
    "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
    "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml",
]


@pytest.fixture(scope="module")
def encoder_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    torch.manual_seed(1)
    save_encoder(create_encoder("vit_tiny", img_size=64, **SMALL), path)
    return path


def stock(name: str, weights: object, **overrides: object):
    """Returns a stock config with our backbone, and heads narrow enough for a test."""
    cfg = get_cfg()
    add_splitmask_config(cfg)
    cfg.merge_from_file(model_zoo.get_config_file(name))
    cfg.MODEL.BACKBONE.NAME = "build_splitmask_vit_backbone"
    cfg.MODEL.WEIGHTS = str(weights)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.SPLITMASK.OUT_CHANNELS = 16
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 8
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
    cfg.MODEL.RETINANET.NUM_CLASSES = 2
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 8
    cfg.MODEL.SPLITMASK.OVERRIDES.update(overrides)
    return cfg


def batch() -> list[dict]:
    """Returns two images of different sizes, with one object each."""
    inputs = []
    for height, width in ((70, 90), (64, 50)):
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(torch.tensor([[5.0, 6.0, 40.0, 44.0]]))
        instances.gt_classes = torch.tensor([1])
        masks = torch.zeros(1, height, width, dtype=torch.bool)
        masks[:, 6:44, 5:40] = True
        instances.gt_masks = BitMasks(masks)
        sem_seg = torch.zeros(height, width, dtype=torch.long)
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        inputs.append({"image": image, "instances": instances, "sem_seg": sem_seg, "height": height, "width": width})
    return inputs


@pytest.mark.parametrize("pyramid", ["simple", "tapped"])
@pytest.mark.parametrize("name", STOCK)
def test_stock_configs_train_and_detect(name, pyramid, encoder_file):
    torch.manual_seed(0)
    cfg = stock(name, encoder_file)
    cfg.MODEL.SPLITMASK.PYRAMID = pyramid
    cfg.INPUT.MASK_FORMAT = "bitmask"
    model = build_model(cfg)
    wanted = ["p3", "p4", "p5", "p6", "p7"] if "retinanet" in name else ["p2", "p3", "p4", "p5", "p6"]
    assert list(model.backbone.output_shape()) == wanted
    inputs = batch()
    if "mask" not in name and "panoptic" not in name:
        for item in inputs:
            item["instances"].remove("gt_masks")
    from detectron2.utils.events import EventStorage

    with EventStorage():
        losses = model(inputs)
    sum(losses.values()).backward()
    assert torch.isfinite(sum(losses.values()))
    assert [n for n, p in model.backbone.named_parameters() if p.grad is None] == []
    model.eval()
    with torch.no_grad():
        assert len(model(inputs)) == 2


def test_weights_are_loaded_at_build_time_and_stay(encoder_file, tmp_path):
    cfg = stock(MASK_RCNN, encoder_file)
    model = build_model(cfg)
    expected = create_state(encoder_file)
    DetectionCheckpointer(model, str(tmp_path)).resume_or_load(cfg.MODEL.WEIGHTS, resume=False)
    for name, value in expected.items():
        assert torch.equal(model.backbone.encoder.state_dict()[name], value), name
    assert str(cfg.MODEL.WEIGHTS) == str(encoder_file)  # the config is as the user wrote it


def create_state(path):
    from safetensors.torch import load_file

    return {name: value for name, value in load_file(path).items() if not name.startswith("norm.")}


def test_a_file_in_the_home_folder_is_the_one_that_was_loaded(encoder_file, monkeypatch):
    monkeypatch.setenv("HOME", str(encoder_file.parent))
    cfg = stock(MASK_RCNN, f"~/{encoder_file.name}")
    DetectionCheckpointer(build_model(cfg)).resume_or_load(cfg.MODEL.WEIGHTS, resume=False)


def test_a_whole_detector_is_left_to_the_checkpointer_and_has_to_fit(encoder_file, tmp_path):
    cfg = stock(MASK_RCNN, encoder_file)
    trained = build_model(cfg)
    DetectionCheckpointer(trained, str(tmp_path)).save("model_final")
    cfg = stock(MASK_RCNN, tmp_path / "model_final.pth", img_size=64, **SMALL)
    model = build_model(cfg)
    name = "backbone.encoder.blocks.0.attn.qkv.weight"
    assert not torch.equal(model.state_dict()[name], trained.state_dict()[name])
    DetectionCheckpointer(model).resume_or_load(cfg.MODEL.WEIGHTS, resume=False)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), trained.parameters(), strict=True))
    # without the encoder's arguments a vit_small is built, and the checkpoint does not fit
    other = build_model(stock(MASK_RCNN, tmp_path / "model_final.pth"))
    with pytest.raises(UserError, match=r"does not hold this backbone.*MODEL.SPLITMASK.ENCODER"):
        DetectionCheckpointer(other).load(str(tmp_path / "model_final.pth"))
    with pytest.raises(
        UserError, match=r"img_size \[64, 64\] \(here \[224, 224\]\), embed_dim.*OVERRIDES: \{'img_size': \[64"
    ):
        DetectionCheckpointer(other).load(str(tmp_path / "model_final.pth"))
    older = torch.load(tmp_path / "model_final.pth", weights_only=True)
    del older[ENCODER_ARGUMENTS]
    torch.save(older, tmp_path / "older.pth")
    with pytest.raises(UserError, match=r"does not hold this backbone \(\d+ missing, .*MODEL.SPLITMASK.ENCODER"):
        DetectionCheckpointer(other).load(str(tmp_path / "older.pth"))
    torch.save({"model": {"foo": torch.zeros(1)}}, tmp_path / "nothing.pth")
    with pytest.raises(UserError, match="does not hold this backbone"):
        DetectionCheckpointer(model).load(str(tmp_path / "nothing.pth"))


def test_where_a_layer_scale_began_is_no_difference(tmp_path):
    """Its number is the factor that training begins with; whether there are factors decides what is computed."""
    began = build_model(stock(MASK_RCNN, "", img_size=64, **SMALL, layer_scale=1e-4))
    DetectionCheckpointer(began, str(tmp_path)).save("model_final")
    other = build_model(stock(MASK_RCNN, "", img_size=64, **SMALL, layer_scale=0.1))
    DetectionCheckpointer(other).load(str(tmp_path / "model_final.pth"))
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), began.parameters(), strict=True))
    without = build_model(stock(MASK_RCNN, "", img_size=64, **SMALL))
    with pytest.raises(UserError, match=r"its encoder has layer_scale 0.0001 \(here None\)"):
        DetectionCheckpointer(without).load(str(tmp_path / "model_final.pth"))


@pytest.mark.parametrize(
    "told", [{"position_resize": "plain"}, {"num_heads": 2}, {"window_size": 2, "window_block_indexes": [0]}]
)
def test_what_leaves_no_trace_in_the_weights_has_to_fit(told, tmp_path):
    """A detector that is rebuilt by its name alone would compute something else, and say nothing."""
    sizes = {**SMALL, "img_size": 64}
    save_encoder(create_encoder("vit_tiny", **{**sizes, **told}), tmp_path / "encoder.safetensors")
    trained = build_model(stock(MASK_RCNN, tmp_path / "encoder.safetensors", drop_path_rate=0.3))
    DetectionCheckpointer(trained, str(tmp_path)).save("model_final", iteration=7)
    rebuilt = build_model(stock(MASK_RCNN, tmp_path / "model_final.pth", **sizes))
    with pytest.raises(UserError, match=f"its encoder has {next(iter(told))}"):
        DetectionCheckpointer(rebuilt).load(str(tmp_path / "model_final.pth"))
    rebuilt = build_model(stock(MASK_RCNN, tmp_path / "model_final.pth", **{**sizes, **told}))
    assert DetectionCheckpointer(rebuilt).load(str(tmp_path / "model_final.pth"))["iteration"] == 7


def test_overrides_can_stand_on_the_command_line():
    cfg = stock(MASK_RCNN, "")
    words = ["ENCODER", "vit_tiny", "OVERRIDES.drop_path_rate", "0.1", "OVERRIDES.window_size", "4"]
    words += ["OVERRIDES.window_block_indexes", "(0, 2)", "OVERRIDES.final_norm", "False"]
    prefixed = [f"MODEL.SPLITMASK.{word}" if index % 2 == 0 else word for index, word in enumerate(words)]
    cfg.merge_from_list(prefixed)
    config = build_model(cfg).backbone.encoder.config
    assert (config["drop_path_rate"], config["window_size"], config["window_block_indexes"]) == (0.1, 4, [0, 2])


def test_other_models_keep_their_checkpointer(tmp_path):
    model = torch.nn.Linear(2, 2)
    torch.save({"model": {"weight": torch.ones(2, 2)}}, tmp_path / "linear.pth")
    DetectionCheckpointer(model).load(str(tmp_path / "linear.pth"))  # bias is missing: detectron2's own lax rule
    assert torch.equal(model.weight, torch.ones(2, 2))


def test_wrong_weights_stop_the_build(tmp_path, encoder_file):
    with pytest.raises(UserError, match=r"R-50.pkl is a pickle of another backbone"):
        build_model(stock(MASK_RCNN, "detectron2://ImageNetPretrained/MSRA/R-50.pkl"))
    with pytest.raises(UserError, match="does not exist"):
        build_model(stock(MASK_RCNN, tmp_path / "none.safetensors"))
    cfg = stock(MASK_RCNN, encoder_file)
    cfg.MODEL.SPLITMASK.ENCODER = "vit_base"
    with pytest.raises(UserError, match="encoder 'vit_base' has"):
        build_model(cfg)
    with pytest.raises(UserError, match="did you mean 'out_features'"):
        SplitMaskViTBackbone("vit_tiny", out_featurs=("p2", "p3"))
    with pytest.raises(UserError, match="did you mean 'drop_path_rate'"):
        build_model(stock(MASK_RCNN, encoder_file, drop_path=0.1))
    cfg = stock(MASK_RCNN, "")
    cfg.MODEL.SPLITMASK.PYRAMID = "simpel"
    with pytest.raises(UserError, match="did you mean 'simple'"):
        build_model(cfg)


def test_keys_of_the_added_node_reach_the_backbone(encoder_file):
    from detectron2.modeling import build_backbone

    def built(**keys):
        cfg = stock(MASK_RCNN, encoder_file)
        cfg.MODEL.SPLITMASK.update(keys)
        return build_backbone(cfg)

    def kinds(backbone):
        return {type(module).__name__ for module in backbone.pyramid.modules()}

    plain = built()
    assert plain.padding_constraints["square_size"] == 0 and "p2" in plain.output_shape()
    assert "BatchNorm2d" not in kinds(plain) and "BatchNorm2d" in kinds(built(NORM="BN"))
    assert "TappedPyramid" not in kinds(plain) and "TappedPyramid" in kinds(built(PYRAMID="tapped"))
    assert built(SQUARE_PAD=128).padding_constraints["square_size"] == 128
    assert built(OUT_CHANNELS=8).output_shape()["p3"].channels == 8
    fewer = built(OUT_FEATURES=["p3", "p4", "p5"])
    assert list(fewer.output_shape()) == ["p3", "p4", "p5"] == list(fewer(torch.randn(1, 3, 64, 64)))


def test_overrides_of_another_kind_are_named():
    cfg = stock(MASK_RCNN, "")
    cfg.MODEL.SPLITMASK.OVERRIDES = ["depth", 4]
    with pytest.raises(
        UserError, match=r"OVERRIDES must be a CfgNode of arguments, got \['depth', 4\].*OVERRIDES.depth = 4"
    ):
        build_model(cfg)


def test_defaults_hold_without_the_added_node(encoder_file):
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_splitmask_vit_backbone"
    cfg.MODEL.WEIGHTS = str(encoder_file)
    cfg.MODEL.DEVICE = "cpu"
    from detectron2.modeling import build_backbone

    backbone = build_backbone(cfg)
    assert backbone.encoder.embed_dim == 24 and backbone.output_shape()["p2"].channels == 256


def test_the_encoder_sees_the_pixels_it_was_trained_on(encoder_file):
    """BGR with detectron2's mean and no division, and RGB normalised as in pre-training, give the same maps."""
    cfg = stock(MASK_RCNN, encoder_file)
    assert cfg.INPUT.FORMAT == "BGR" and cfg.MODEL.PIXEL_STD == [1.0, 1.0, 1.0]
    torch.manual_seed(0)
    by_config = build_model(cfg).eval()
    plain = SplitMaskViTBackbone(weights=encoder_file, out_channels=16).eval()
    plain.load_state_dict(by_config.backbone.state_dict())
    rgb = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    normalised = (rgb / 255 - torch.tensor(IMAGENET_MEAN).reshape(3, 1, 1)) / torch.tensor(IMAGENET_STD).reshape(
        3, 1, 1
    )
    images = by_config.preprocess_image([{"image": rgb.flip(0)}])
    with torch.no_grad():
        for name, value in by_config.backbone(images.tensor).items():
            torch.testing.assert_close(value, plain(normalised[None])[name], atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("pyramid", ["simple", "tapped", "taps"])
@pytest.mark.parametrize("size", [(64, 64), (75, 101)])
def test_same_maps_as_the_other_adapters(encoder_file, pyramid, size):
    ours = SplitMaskViTBackbone(weights=encoder_file, pyramid=pyramid, out_channels=8).eval()
    tv = torchvision.backbone(weights=encoder_file, pyramid=pyramid, out_channels=8).eval()
    tv.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        maps = list(ours(images).values())
        for a, b in zip(maps, tv(images).values(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
        pytest.importorskip("mmcv", reason="the extra 'segmentation' is not installed")
        from splitmask_backbones.mmseg import SplitMaskViT

        seg = SplitMaskViT(weights=encoder_file, pyramid=pyramid, out_channels=8).eval()
        seg.load_state_dict(ours.state_dict())
        for a, b in zip(maps[:4], seg(images), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("norm", ["LN", "BN", "SyncBN", "none"])
@pytest.mark.parametrize("pyramid", ["simple", "tapped", "taps"])
def test_norms_and_chosen_levels(norm, pyramid):
    torch.manual_seed(0)
    kwargs = {"encoder": "vit_tiny", "pyramid": pyramid, "norm": norm, "out_channels": 8, **SMALL}
    whole = SplitMaskViTBackbone(**kwargs).eval()
    part = SplitMaskViTBackbone(out_features=("p3", "p4", "p5"), **kwargs).eval()
    missing, unexpected = part.load_state_dict(whole.state_dict(), strict=False)
    assert missing == [] and {name.split(".")[2] for name in unexpected} == {"0"}  # the names of the rest are the same
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = whole(images)
        for name, value in part(images).items():
            torch.testing.assert_close(value, expected[name])


@pytest.mark.parametrize("features", [(), ("p2", "p4"), ("p6", "p7"), ("p2", "p2", "p3"), ("p3", "p4")])
def test_levels_that_make_no_pyramid(features):
    with pytest.raises(UserError, match="consecutive"):
        SplitMaskViTBackbone("vit_tiny", out_features=features, **SMALL)


def test_lazy_config(encoder_file):
    node = LazyCall(SplitMaskViTBackbone)(
        weights=str(encoder_file), square_pad=128, window_size=2, window_block_indexes=[0, 2], drop_path_rate=0.2
    )
    backbone = instantiate(node)
    assert backbone.padding_constraints == {"size_divisibility": 32, "square_size": 128}
    assert backbone.encoder.window_block_indexes == (0, 2)
    assert backbone.encoder.load_report.path == str(encoder_file)


def test_maps_are_float32_under_autocast():
    backbone = SplitMaskViTBackbone("vit_tiny", **SMALL)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = backbone(torch.randn(1, 3, 64, 64))
    assert {value.dtype for value in maps.values()} == {torch.float32}


def test_layer_decay_on_a_built_detector(encoder_file):
    """Every parameter is in exactly one group; the scale is checked against the names, not against our own rule."""
    model = build_model(stock(MASK_RCNN, encoder_file))
    groups = param_groups(model, 1e-3, 0.05, layer_decay=0.5)
    placed = {name: group for group in groups for name in group["names"]}
    assert sorted(placed) == sorted(name for name, _ in model.named_parameters())
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    depth = SMALL["depth"]
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        if parts[:2] == ["backbone", "encoder"]:
            layer = int(parts[3]) + 1 if parts[2] == "blocks" else 0
        else:
            layer = depth + 1
        assert placed[name]["lr"] == pytest.approx(1e-3 * 0.5 ** (depth + 1 - layer)), name
        no_decay = parameter.ndim == 1 or name.endswith("pos_embed")
        assert placed[name]["weight_decay"] == (0.0 if no_decay else 0.05), name


def test_stock_yaml_trains_saves_and_evaluates(encoder_file, tmp_path):
    """detectron2's own DefaultTrainer, data loader and evaluator, with the backbone's name and the weights changed."""
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.datasets import register_coco_instances
    from detectron2.data.transforms import ResizeShortestEdge
    from detectron2.engine import DefaultPredictor, DefaultTrainer
    from detectron2.evaluation import COCOEvaluator

    root = write_root(tmp_path / "data")
    names = {}
    for split in ("train", "val"):
        names[split] = f"splitmask_test_{split}"
        register_coco_instances(names[split], {}, str(root / f"annotations/instances_{split}.json"), str(root / split))
    try:
        cfg = stock(MASK_RCNN, encoder_file)
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (names["train"],), (names["val"],)
        cfg.DATALOADER.NUM_WORKERS, cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0, 0.0
        cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (64, 80), 64
        cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.STEPS = 2, 2, ()
        cfg.OUTPUT_DIR = str(tmp_path / "out")
        Path(cfg.OUTPUT_DIR).mkdir()
        trainer = DefaultTrainer(cfg)
        trainer.resume_or_load(resume=False)
        before = {n: p.detach().clone() for n, p in trainer.model.backbone.encoder.named_parameters()}
        assert all(torch.equal(value, create_state(encoder_file)[name]) for name, value in before.items())
        trainer.train()
        assert any(not torch.equal(p, before[n]) for n, p in trainer.model.backbone.encoder.named_parameters())
        assert (tmp_path / "out/model_final.pth").exists()
        evaluator = COCOEvaluator(names["val"], output_dir=None)
        results = DefaultTrainer.test(cfg, trainer.model, evaluators=[evaluator])
        assert {"bbox", "segm"} <= set(results)
        # As the documentation loads what was trained.
        cfg.MODEL.WEIGHTS = str(tmp_path / "out/model_final.pth")
        cfg.MODEL.SPLITMASK.OVERRIDES.update({"img_size": 64, **SMALL})
        image = np.asarray(Image.open(next((root / "val").iterdir())).convert("RGB"))[..., ::-1]
        found = DefaultPredictor(cfg)(image)["instances"]
        given = ResizeShortestEdge(64, cfg.INPUT.MAX_SIZE_TEST).get_transform(image).apply_image(image)
        pixels = torch.from_numpy(np.ascontiguousarray(given.transpose(2, 0, 1)))
        sample = {"image": pixels, "height": image.shape[0], "width": image.shape[1]}
        with torch.no_grad():
            expected = trainer.model.eval()([sample])[0]["instances"]
        assert len(found) == len(expected) > 0
        torch.testing.assert_close(found.scores, expected.scores)
        torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    finally:
        for name in names.values():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
