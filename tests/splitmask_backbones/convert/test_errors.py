"""tools/convert.py on what it must refuse: nothing runs, nothing is written, one line says why."""

from __future__ import annotations

import argparse
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from splitmask_backbones import VisionTransformer, create_encoder, save_encoder
from splitmask_backbones.convert.conversion import convert
from tests.helpers.paths import ROOT
from tools.convert import _parse

pytest.importorskip("timm", reason="the extra 'timm' is not installed")

SIZES = {"img_size": 64, "embed_dim": 64, "depth": 2, "num_heads": 1}


@pytest.fixture
def state():
    torch.manual_seed(0)
    return VisionTransformer(**SIZES, use_class_token=True).state_dict()


def run(*argv: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/convert.py", *map(str, argv)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


class Evil:
    def __reduce__(self):
        return (print, ("code was run",))


def test_a_pickle_that_would_run_code_is_refused(tmp_path, state):
    torch.save({"model": state, "args": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps({"model": Evil()}))
    for name in ("evil.pth", "raw.pth"):
        result = run(tmp_path / name, tmp_path / "out.safetensors")
        assert result.returncode == 2 and "code was run" not in result.stdout
        assert result.stderr.startswith(f"error: {tmp_path / name}") and result.stderr.count("\n") == 1
        assert not (tmp_path / "out.safetensors").exists()
    assert "would run code" in run(tmp_path / "evil.pth", tmp_path / "out.safetensors").stderr


def test_a_folder_of_other_things_is_not_replaced(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    save_encoder(create_encoder("vit_tiny", depth=1), tmp_path / "run/encoder.safetensors")
    (tmp_path / "run/thesis.txt").write_text("years")
    source = tmp_path / "run/encoder.safetensors"
    monkeypatch.chdir(tmp_path / "run")
    for place in (tmp_path / "run", "."):
        with pytest.raises(
            ValueError, match="holds encoder.safetensors, thesis.txt beside the files of a Hugging Face"
        ):
            convert(source, place, to="hf", overwrite=True)
    pytest.importorskip("transformers", reason="the extra 'convert' is not installed")
    for _ in range(2):  # its own folder is
        convert(source, tmp_path / "hf", to="hf", overwrite=True)
    assert source.exists() and (tmp_path / "run/thesis.txt").exists()


def test_what_our_own_file_says_itself_cannot_be_set(tmp_path):
    save_encoder(create_encoder("vit_tiny", depth=1), tmp_path / "e.safetensors")
    with pytest.raises(ValueError, match="says itself that it is 0, omit the option"):
        convert(tmp_path / "e.safetensors", tmp_path / "out.safetensors", overrides={"window_size": 14})
    convert(tmp_path / "e.safetensors", tmp_path / "out.safetensors", overrides={"window_block_indexes": ()})


def test_harmless_company_is_read(tmp_path, state):
    company = {"args": argparse.Namespace(lr=0.1), "best": np.float64(3.5), "table": np.arange(3)}
    torch.save({"model": state, **company}, tmp_path / "in.pth")
    assert convert(tmp_path / "in.pth", tmp_path / "out.safetensors").report.complete
    logging = pytest.importorskip("mmengine.logging", reason="the extra 'segmentation' is not installed")
    history = logging.HistoryBuffer([1.0], [1])
    torch.save({"state_dict": state, "message_hub": {"loss": history}}, tmp_path / "mm.pth")
    assert convert(tmp_path / "mm.pth", tmp_path / "mm.safetensors").report.complete


@pytest.mark.parametrize(
    ("content", "name", "match"),
    [
        (b"", "a.pth", "empty"),
        (b"", "a.safetensors", "empty"),
        (b"PK\x03\x04 and no more", "a.pth", "damaged"),
        (b"hello, world" * 20, "a.pth", "a.pth"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00 not json here", "a.safetensors", "not a readable safetensors"),
    ],
)
def test_damaged_files(content, name, match, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=match):
        convert(tmp_path / name, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_truncated_file(tmp_path, state):
    torch.save(state, tmp_path / "whole.pth")
    content = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "half.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="half.pth"):
        convert(tmp_path / "half.pth", tmp_path / "out.safetensors")


def test_wrong_family_model_and_names(tmp_path, state):
    torch.save(state, tmp_path / "in.pth")
    for argv, message in (
        (["--from", "beit"], "is of the family 'timm' and not 'beit'"),
        (["--from", "hff"], "did you mean 'hf'"),
        (["--to", "tim"], "did you mean 'timm'"),
        (["--model", "vit_small"], "embed_dim 64, but --model vit_small has 384"),
        (["--set", "windowsize=3"], "did you mean 'window_size'"),
        (["--set", "windowsize"], "is not key=value"),
    ):
        result = run(tmp_path / "in.pth", tmp_path / "out.safetensors", *argv)
        assert result.returncode == 2 and message in result.stderr, result.stderr
        assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        ({"num_heads": "many"}, r"in\.pth: num_heads must be a whole number, got 'many'"),
        ({"img_size": "large"}, "--set img_size=large is not a size: give one number or HEIGHT,WIDTH"),
        ({"img_size": (64, 64, 64)}, "is not a size"),
        ({"out_indices": "ab"}, r"in\.pth: out_indices must be whole numbers in a list, got 'ab'"),
    ],
)
def test_overrides_of_a_wrong_kind(overrides, match, tmp_path, state):
    torch.save(state, tmp_path / "in.pth")
    with pytest.raises(ValueError, match=match):
        convert(tmp_path / "in.pth", tmp_path / "out.safetensors", overrides=overrides)
    assert not (tmp_path / "out.safetensors").exists()


def test_destinations(tmp_path, state):
    torch.save(state, tmp_path / "in.pth")
    (tmp_path / "old.safetensors").write_text("precious")
    (tmp_path / "folder").mkdir()
    for name, message in (
        ("old.safetensors", "exists already"),
        ("out.bin", "must end in .safetensors"),
        ("out.pth", "must end in .safetensors for --to splitmask"),
        ("folder", "exists already"),
    ):
        with pytest.raises(ValueError, match=message):
            convert(tmp_path / "in.pth", tmp_path / name)
    with pytest.raises(ValueError, match="is of the family"):
        convert(tmp_path / "in.pth", tmp_path / "old.safetensors", from_="beit", overwrite=True)
    assert (tmp_path / "old.safetensors").read_text() == "precious"
    convert(tmp_path / "in.pth", tmp_path / "old.safetensors", overwrite=True)
    assert (tmp_path / "old.safetensors").stat().st_size > 1000


def test_partial_files_need_consent(tmp_path, state):
    del state["blocks.1.mlp.fc2.bias"]
    state["blocks.0.attn.rope"] = torch.zeros(2)
    torch.save(state, tmp_path / "in.pth")
    result = run(tmp_path / "in.pth", tmp_path / "out.safetensors")
    assert result.returncode == 2 and "1 parameters missing and 1 keys unexpected" in result.stderr
    result = run(tmp_path / "in.pth", tmp_path / "out.safetensors", "--allow-partial")
    assert result.returncode == 0 and result.stderr.startswith("warning:") and "1 parameters missing" in result.stderr
    report = json.loads((tmp_path / "out.safetensors.report.json").read_text())
    assert report["complete"] is False and report["differences"]["source"] is None
    states = {row["key"]: row["state"] for row in report["keys"]}
    assert states["blocks.1.mlp.fc2.bias"] == "missing" and states["blocks.0.attn.rope"] == "unexpected"


def test_non_square_positions_are_asked_for(tmp_path):
    torch.manual_seed(0)
    state = VisionTransformer(**{**SIZES, "img_size": (32, 96)}).state_dict()
    torch.save(state, tmp_path / "in.pth")
    with pytest.raises(ValueError, match="--set img_size=HEIGHT,WIDTH"):
        convert(tmp_path / "in.pth", tmp_path / "out.safetensors")
    done = convert(tmp_path / "in.pth", tmp_path / "out.safetensors", overrides={"img_size": (32, 96)})
    assert done.encoder.grid_size == (2, 6)


def test_models_that_differ_write_nothing(tmp_path, state, monkeypatch):
    """A wrong translation that fits every shape: only the outputs tell."""
    from splitmask_backbones.convert import keys as layouts

    torch.save({name: value + torch.randn_like(value) / 5 for name, value in state.items()}, tmp_path / "in.pth")
    right = layouts.rename
    swapped = {"blocks.0.norm1": "blocks.0.norm2", "blocks.0.norm2": "blocks.0.norm1"}

    def wrong(name, rules):
        head, _, kind = right(name, rules).rpartition(".")
        return f"{swapped.get(head, head)}.{kind}" if head else kind

    monkeypatch.setattr(layouts, "rename", wrong)
    with pytest.raises(ValueError, match="timm's own model and the encoder differ by"):
        convert(tmp_path / "in.pth", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("kwargs", "to", "match"),
    [
        ({"num_registers": 2}, "detectron2", "has registers"),
        ({"window_size": 2, "window_block_indexes": (0,)}, "timm", "has windows"),
        ({"layer_scale": 0.1}, "hf", "has no class token"),
    ],
)
def test_what_a_target_cannot_hold(kwargs, to, match, tmp_path):
    save_encoder(create_encoder("vit_tiny", img_size=64, depth=2, **kwargs), tmp_path / "in.safetensors")
    name = {"timm": "out.safetensors", "hf": "out"}.get(to, "out.pth")
    with pytest.raises(ValueError, match=match):
        convert(tmp_path / "in.safetensors", tmp_path / name, to=to)
    assert not (tmp_path / name).exists()


def test_the_tool_prints_report_and_proof(tmp_path, state):
    torch.save({**state, "head.weight": torch.zeros(2, 2)}, tmp_path / "in.pth")
    result = run(tmp_path / "in.pth", tmp_path / "out.safetensors")
    assert result.returncode == 0, result.stderr
    assert "head.weight" in result.stdout and "dropped" in result.stdout
    assert "source: largest difference" in result.stdout and "target: largest difference" in result.stdout


def test_one_block_is_a_list_of_one():
    assert _parse("window_block_indexes=0") == ("window_block_indexes", (0,))
    assert _parse("window_block_indexes=0,2") == ("window_block_indexes", (0, 2))
    assert _parse("window_size=3") == ("window_size", 3)
