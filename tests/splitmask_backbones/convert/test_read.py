"""splitmask_backbones.convert.read, families and runs: what a file is, without running anything that is in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from splitmask_backbones.convert.families import detect, prefix_of
from splitmask_backbones.convert.names import FAMILIES, PLAIN
from splitmask_backbones.convert.read import WeightsFile, read_weights
from splitmask_backbones.convert.runs import encoder_of, file_of, run_of

FIRST = "patch_embed.proj.weight"
ONE = torch.ones(1)


def test_of_several_containers_the_teacher_is_taken(tmp_path: Path) -> None:
    torch.save({"student": {"a": ONE}, "teacher": {"module": {"a": 2 * ONE}}, "epoch": 3}, tmp_path / "a.pth")
    file = read_weights(tmp_path / "a.pth")
    assert file.containers == ("teacher", "module") and file.tensors["a"].item() == 2


def test_floats_become_float32_and_integers_stay(tmp_path: Path) -> None:
    save_file({"half": ONE.half(), "index": torch.arange(3)}, tmp_path / "a.safetensors", {"format": "pt"})
    file = read_weights(tmp_path / "a.safetensors")
    assert (file.tensors["half"].dtype, file.tensors["index"].dtype) == (torch.float32, torch.int64)
    assert file.metadata == {"format": "pt"} and file.hf_config is None and file.run is None


def test_a_hugging_face_folder_comes_with_its_config(tmp_path: Path) -> None:
    save_file({"embeddings.patch_embeddings.projection.weight": ONE}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 3}))
    assert read_weights(tmp_path).hf_config == {"num_attention_heads": 3}


@pytest.mark.parametrize(
    ("names", "family", "prefix"),
    [
        ([FIRST], "timm", ""),
        ([FIRST, "dist_token"], "deit", ""),
        ([f"encoder.{FIRST}", "encoder.decoder_embed.weight"], "mocov3", "encoder."),
        ([FIRST, "decoder_embed.weight"], "mae", ""),
        ([f"backbone.{FIRST}", "head.last_layer.weight_g"], "dino", "backbone."),
        ([FIRST, "register_tokens"], "dino", ""),
        ([FIRST, "blocks.0.gamma_1"], "beit", ""),
        ([f"backbone.net.{FIRST}"], "vitdet", "backbone.net."),
        ([FIRST, "blocks.0.attn.rel_pos_h"], "vitdet", ""),
        ([f"module.momentum_encoder.{FIRST}", f"module.z_encoder.{FIRST}"], "mocov3", "module.z_encoder."),
        (["vit.embeddings.patch_embeddings.projection.weight"], "hf", "vit."),
    ],
)
def test_families_by_their_names(names: list[str], family: str, prefix: str) -> None:
    file = WeightsFile(Path("a.pth"), dict.fromkeys(names, ONE))
    assert (detect(file), prefix_of(file)[0]) == (family, prefix)


def test_families_by_what_stands_around_the_tensors() -> None:
    tensors = {FIRST: ONE}
    assert detect(WeightsFile(Path("a"), tensors, containers=("teacher",))) == "dino"
    assert detect(WeightsFile(Path("a"), tensors, metadata={"config": "{}"})) == "splitmask"
    assert detect(WeightsFile(Path("a"), tensors, run={"command": "pretrain"})) == "splitmask"
    assert set(PLAIN) < set(FAMILIES)
    with pytest.raises(ValueError, match=r"a\.pth holds no Vision Transformer .* it has fc\.weight"):
        prefix_of(WeightsFile(Path("a.pth"), {"fc.weight": ONE}))


def test_the_finished_weights_of_a_folder_come_before_its_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="is a folder without model.safetensors"):
        file_of(tmp_path, None, False)
    for name in ("step_00000002.safetensors", "step_00000010.safetensors", "step_00000012.pth", "other.safetensors"):
        (tmp_path / "checkpoints" / name).touch()
    assert file_of(tmp_path, None, False).name == "step_00000010.safetensors"
    assert file_of(tmp_path, 2, False).name == "step_00000002.safetensors"
    with pytest.raises(ValueError, match="no checkpoint of step 3: there are 2, 10"):
        file_of(tmp_path, 3, False)
    with pytest.raises(ValueError, match="or omit --best"):
        file_of(tmp_path, None, True)
    for name in ("detector.safetensors", "encoder.safetensors", "best.safetensors"):
        (tmp_path / name).touch()
    assert file_of(tmp_path, None, False).name == "encoder.safetensors"
    assert file_of(tmp_path, None, True).name == "best.safetensors"


def test_a_checkpoint_needs_the_config_of_its_run(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints/step_00000002.safetensors"
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        run_of(path, {"state": "{}"})
    run = {"command": "pretrain", "values": {}}
    (tmp_path / "config.json").write_text(json.dumps(run))
    assert run_of(path, {"state": "{}"}) == run
    assert run_of(tmp_path / "encoder.safetensors", {"config": '{"depth": 2}'}) is None
    assert run_of(tmp_path / "detector.safetensors", {"config": '{"command": "train_det"}'}) == {"command": "train_det"}


def test_of_several_encoders_the_average_is_taken() -> None:
    prefixes: dict[str, Any] = {"model.encoder.": 1, "average.encoder.": 2, "model.teacher.encoder.": 3}
    tensors = {f"{prefix}{FIRST}": value * ONE for prefix, value in prefixes.items()}
    config, state, others = encoder_of(Path("a"), {"encoder": {"depth": 2}}, tensors)
    assert config == {"depth": 2} and list(state) == [FIRST] and state[FIRST].item() == 2 and len(others) == 2
    del tensors[f"average.encoder.{FIRST}"]
    assert encoder_of(Path("a"), {"encoder": config}, tensors)[1][FIRST].item() == 3
    with pytest.raises(ValueError, match="the encoder's arguments cannot be told"):
        encoder_of(Path("a"), {"values": {}}, tensors)
    with pytest.raises(ValueError, match="holds no encoder"):
        encoder_of(Path("a"), {"encoder": config}, {"head.weight": ONE})
