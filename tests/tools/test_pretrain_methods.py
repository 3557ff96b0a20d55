"""`--method beit` and `--method dino` through the tool: runs, exact resumes, options that have no effect with them."""

import json
import shutil
import warnings
from importlib.util import find_spec

import pytest
import torch

from pretrain.methods.build import build_encoder
from pretrain.recipes import RECIPES, get_recipe
from splitmask_backbones import load_encoder
from tests.helpers.methods import METHODS
from tests.helpers.pretrain_tool import ENCODER, OPTIONS, error_of, run, state_of


@pytest.mark.parametrize("method", METHODS)
def test_a_run_and_an_exact_resume(method, images, tmp_path):
    from splitmask_backbones import load_encoder

    words = ["--data", images, "--method", method, *OPTIONS]
    result = run(*words, "--output", tmp_path / "whole")
    assert result.returncode == 0, result.stderr
    encoder = load_encoder(tmp_path / "whole/encoder.safetensors")
    assert encoder.config["use_class_token"] == (method == "dino")
    lines = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6] and lines[0]["loss_match"] is None
    assert (lines[0]["loss_inpaint"] is None) == (method == "dino")
    config = json.loads((tmp_path / "whole/config.json").read_text())
    assert config["encoder"] == json.loads(json.dumps(encoder.config))
    shutil.copytree(tmp_path / "whole", tmp_path / "again")  # as after a kill between the steps 4 and 6
    (tmp_path / "again/encoder.safetensors").unlink()
    (tmp_path / "again/checkpoints/step_00000006.safetensors").unlink()
    result = run(*words, "--output", tmp_path / "again", "--resume")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "again" / ENCODER).read_bytes() == (tmp_path / "whole" / ENCODER).read_bytes()
    assert state_of(tmp_path / "again") == state_of(tmp_path / "whole")


def test_dino_clips_one_parameter_at_a_time(images, tmp_path):
    """A clip that always bites: the two ways are told apart by the bytes."""
    pytest.importorskip("lightly", reason="the extra 'dino' is not installed")
    words = ["--data", images, "--method", "dino", *OPTIONS, "--clip-grad", "0.01"]
    whole = {}
    for name, more in (("each", []), ("all", ["--clip-per-parameter", "false"])):
        result = run(*words, *more, "--output", tmp_path / name)
        assert result.returncode == 0, result.stderr
        whole[name] = (tmp_path / name / ENCODER).read_bytes()
    assert whole["each"] != whole["all"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--method", "beit", "--match-weight", "0.5"], "--match-weight 0.5 has no effect with --method beit: omit it"),
        (["--method", "dino", "--tokenizer", "kmeans"], "--tokenizer kmeans has no effect with --method dino"),
        (["--teacher-momentum", "0.9"], "--teacher-momentum 0.9 has no effect with --method splitmask"),
        (["--method", "dino", "--dino-outputs", "1"], "--dino-outputs 1 must be at least 2"),
        (["--method", "dion"], "did you mean 'dino'"),
    ],
)
def test_options_without_effect(words, expected, images, tmp_path):
    assert expected in error_of(run("--data", images, "--output", tmp_path / "out", *OPTIONS, *words))
    assert not (tmp_path / "out").exists()


def test_settings_of_the_baselines():
    for name in RECIPES:
        beit, dino = (get_recipe(name).override({"method": method}) for method in ("beit", "dino"))
        assert beit.peak_lr == get_recipe(name).peak_lr and beit.uses_tokens and not dino.uses_tokens
        assert (dino.weight_decay, dino.end_weight_decay, dino.crop_scale) == (0.04, 0.4, 0.4)
        assert dino.peak_lr == pytest.approx(5e-4 * dino.batch_size / 256)
        assert beit.rescale_residuals and not dino.rescale_residuals and not get_recipe(name).rescale_residuals
        assert dino.clip_per_parameter and not beit.clip_per_parameter and not get_recipe(name).clip_per_parameter
        assert dino.peak_lr * dino.end_lr_factor == pytest.approx(1e-6 * dino.batch_size / 2048)
    given = get_recipe("small").override({"method": "dino", "base_lr": 1.0, "crop_scale": 0.3})
    assert (given.base_lr, given.crop_scale) == (1.0, 0.3)
    assert given.override({"method": "dino"}).base_lr == 1.0  # as on a resume


def test_lightly_warns_of_nothing():
    pytest.importorskip("lightly", reason="the extra 'dino' is not installed")
    from tests.helpers.dino import build

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build()


def test_adapters_take_an_encoder_with_dinos_class_token(tmp_path):
    """The same maps in every framework, and a gradient for every parameter."""
    import torch

    from splitmask_backbones import VisionTransformer, save_encoder
    from splitmask_backbones import torchvision as ours

    torch.manual_seed(0)
    form = {"img_size": 64, "embed_dim": 24, "depth": 4, "num_heads": 3}
    encoder = VisionTransformer(**form, use_class_token=True, position_resize="plain")
    file = tmp_path / "dino.safetensors"
    save_encoder(encoder, file)
    x = torch.randn(1, 3, 80, 96)
    expected = encoder.eval().forward_maps(x)[0]
    backbones = [ours.backbone(weights=str(file), out_channels=8)]
    if find_spec("mmcv"):
        pytest.importorskip("splitmask_backbones.mmseg")
        from mmseg.registry import MODELS

        init = {"type": "Pretrained", "checkpoint": str(file)}
        backbones.append(MODELS.build({"type": "SplitMaskViT", "out_channels": 8, "init_cfg": init}))
        backbones[-1].init_weights()
    if find_spec("detectron2"):
        from splitmask_backbones.detectron2 import SplitMaskViTBackbone

        backbones.append(SplitMaskViTBackbone(weights=str(file), out_channels=8))
    for backbone in backbones:
        assert backbone.encoder.num_prefix_tokens == 1
        torch.testing.assert_close(backbone.eval().encoder.forward_maps(x)[0], expected)
        maps = backbone.train()(x)
        sum(m.square().sum() for m in (maps.values() if isinstance(maps, dict) else maps)).backward()
        without = [n for n, p in backbone.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
        assert without == []


@pytest.mark.parametrize("method", ["splitmask", *METHODS])
def test_a_frozen_patch_embedding_stays_as_initialised(method, images, tmp_path):
    import torch

    from pretrain.methods.build import build_encoder
    from splitmask_backbones import load_encoder

    words = ["--data", images, "--method", method, *OPTIONS, "--freeze-patch-embed", "true"]
    result = run(*words, "--output", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    values = json.loads((tmp_path / "run/config.json").read_text())["values"]
    own = build_encoder(get_recipe("tiny").override({"method": method, "seed": values["seed"]})).state_dict()
    trained = load_encoder(tmp_path / "run/encoder.safetensors").state_dict()
    changed = [name for name in own if not torch.equal(own[name], trained[name])]
    assert changed and not [name for name in changed if name.startswith("patch_embed")]
    assert {"pos_embed", "blocks.0.attn.qkv.weight", "norm.weight"} <= set(changed)


@pytest.mark.parametrize("method", ["splitmask", "dino"])
def test_queries_and_keys_are_held_and_a_resume_holds_them_where_they_began(method, images, tmp_path):
    """The limit is below where they begin, so they must not grow; what a resume begins with is no beginning."""
    if method == "dino":
        pytest.importorskip("lightly", reason="the extra 'dino' is not installed")
    follows = ["--teacher-momentum", "0"] if method == "dino" else []  # at once at the beginning
    sizes = {"embed_dim": 24, "depth": 2, "img_size": 64}
    words = ["--data", images, *OPTIONS, "--method", method, "--steps", "20", "--base-lr", "0.5", *follows]
    words += [f"--{name.replace('_', '-')}={size}" for name, size in sizes.items()]
    for name, more in (("free", []), ("held", ["--qk-limit", "0.01"]), ("loose", ["--qk-limit", "100"])):
        result = run(*words, *more, "--output", tmp_path / name)
        assert result.returncode == 0, result.stderr
    files = {name: tmp_path / name / ENCODER for name in ("free", "held", "loose")}
    assert files["loose"].read_bytes() == files["free"].read_bytes()
    begun = norms(build_encoder(get_recipe("tiny").override({"method": method, **sizes})))
    free, held = (norms(load_encoder(files[name])) for name in ("free", "held"))
    slack = 0.01 if method == "dino" else 1e-5  # the teacher is a mean of students between two cuts as well
    grown = free > 1.01 * begun  # not each: how they begin differs between versions of torch
    assert grown.sum() >= 2 and (held < begun + slack).all() and (held < free)[grown].all()

    whole = files["held"].read_bytes()  # again from step 18, eight steps after the last cut
    files["held"].unlink()
    (tmp_path / "held/checkpoints/step_00000020.safetensors").unlink()
    said = "--qk-limit was 0.01 and is now 3.0"
    assert said in error_of(run(*words, "--qk-limit", "3", "--output", tmp_path / "held", "--resume"))
    assert run(*words, "--output", tmp_path / "held", "--resume").returncode == 0
    assert files["held"].read_bytes() == whole


def norms(encoder):
    """Largest singular values of what makes queries and keys: `(depth, 2)`."""
    matrices = torch.stack([block.attn.qkv.weight.detach().unflatten(0, (3, -1))[:2] for block in encoder.blocks])
    return torch.linalg.matrix_norm(matrices, 2)
