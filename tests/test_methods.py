"""`--method beit` and `--method dino` through the tool: runs, exact resumes, options that mean nothing to them."""

import json
import shutil
import warnings
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file

from pretrain.recipes import RECIPES, get_recipe
from tests.test_pretrain_tool import OPTIONS, error_of, images, run  # noqa: F401 (a fixture)

METHODS = [
    "beit",
    pytest.param("dino", marks=pytest.mark.skipif(find_spec("lightly") is None, reason="lightly is not installed")),
]


@pytest.mark.parametrize("method", METHODS)
def test_a_run_and_an_exact_resume(method, images, tmp_path):  # noqa: F811
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
    shutil.copytree(tmp_path / "whole", tmp_path / "again")  # as after a kill between the updates 4 and 6
    (tmp_path / "again/encoder.safetensors").unlink()
    (tmp_path / "again/checkpoints/step_00000006.safetensors").unlink()
    result = run(*words, "--output", tmp_path / "again", "--resume")
    assert result.returncode == 0, result.stderr
    encoders = [(tmp_path / folder / "encoder.safetensors").read_bytes() for folder in ("whole", "again")]
    assert encoders[0] == encoders[1]
    states = [load_file(tmp_path / folder / "checkpoints/step_00000006.safetensors") for folder in ("whole", "again")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--method", "beit", "--match-weight", "0.5"], "--match-weight 0.5 means nothing to --method beit"),
        (["--method", "dino", "--tokenizer", "kmeans"], "--tokenizer kmeans means nothing to --method dino"),
        (["--teacher-momentum", "0.9"], "--teacher-momentum 0.9 means nothing to --method splitmask"),
        (["--method", "dino", "--dino-outputs", "0"], "--dino-outputs must be at least 1"),
        (["--method", "dion"], "did you mean 'dino'"),
    ],
)
def test_options_that_mean_nothing(words, expected, images, tmp_path):  # noqa: F811
    assert expected in error_of(run("--data", images, "--output", tmp_path / "out", *OPTIONS, *words))
    assert not (tmp_path / "out").exists()


def test_settings_of_the_baselines():
    for name in RECIPES:
        beit, dino = (get_recipe(name).override({"method": method}) for method in ("beit", "dino"))
        assert beit.peak_lr == get_recipe(name).peak_lr and beit.uses_words and not dino.uses_words
        assert (dino.weight_decay, dino.end_weight_decay, dino.crop_scale) == (0.04, 0.4, 0.4)
        assert dino.peak_lr == pytest.approx(5e-4 * dino.batch_size / 256)
        assert dino.peak_lr * dino.end_lr_factor == pytest.approx(1e-6 * dino.batch_size / 2048)
    given = get_recipe("small").override({"method": "dino", "base_lr": 1.0, "crop_scale": 0.3})
    assert (given.base_lr, given.crop_scale) == (1.0, 0.3)
    assert given.override({"method": "dino"}).base_lr == 1.0  # as on a resume


def test_lightly_warns_of_nothing():
    pytest.importorskip("lightly", reason="the extra 'dino' is not installed")
    from tests.test_dino import build

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build()
