"""The load report of the fine-tuning tools: every part that is new has a row, gaps stay in the results."""

from __future__ import annotations

import json

from torch import nn

from splitmask_backbones import create_encoder, load_encoder, save_encoder
from splitmask_backbones.load_report import LoadReport
from splitmask_backbones.pyramid import build_pyramid
from tools import cli
from tools.common.load_table import mark, name_new_parts, shortened, tell


def detector(encoder):
    model = nn.Module()
    model.backbone, model.roi_heads = nn.Module(), nn.ModuleDict({"box": nn.Linear(3, 2), "mask": nn.Linear(4, 1)})
    model.backbone.encoder = encoder
    model.backbone.pyramid = build_pyramid("simple", encoder, 8)
    return model


def test_new_parts_have_a_row_each(tmp_path, capsys):
    save_encoder(create_encoder("vit_tiny", depth=1, img_size=32), tmp_path / "e.safetensors")
    encoder = load_encoder(tmp_path / "e.safetensors", positions="sincos", use_rel_pos=True)
    model = detector(encoder)
    name_new_parts(encoder.load_report, model, encoder)
    tell(encoder.load_report, tmp_path / "load_report.json")
    rows = {
        row["key"]: (row["state"], row["reason"])
        for row in json.loads((tmp_path / "load_report.json").read_text())["keys"]
    }
    pyramid = sum(parameter.numel() for parameter in model.backbone.pyramid.parameters())
    assert rows["backbone.pyramid.*"] == ("expected missing", f"new neck, {pyramid:,} parameters")
    assert rows["roi_heads.*"] == ("expected missing", "new head, 13 parameters")
    assert rows["blocks.0.attn.rel_pos_h"][0] == "expected missing" and rows["pos_embed"][0] == "dropped"
    assert rows["blocks.0.attn.qkv.weight"] == ("loaded", "")
    shown = capsys.readouterr()
    assert "new head, 13" in shown.out and "keys" in shown.out and shown.err == ""
    assert mark({"AP": 1.0}, encoder.load_report) == {"AP": 1.0}
    assert mark({"AP": 1.0}, None) == {"AP": 1.0}


def test_a_pyramid_that_came_along_is_not_new(tmp_path):
    encoder = create_encoder("vit_tiny", depth=1, img_size=32)
    pyramid = build_pyramid("simple", encoder, 8)
    save_encoder(encoder, tmp_path / "e.safetensors", pyramid.state_dict())
    loaded = load_encoder(tmp_path / "e.safetensors")
    model = detector(loaded)
    name_new_parts(loaded.load_report, model, loaded)
    assert list(loaded.load_report.expected_missing) == ["roi_heads.*"]


def test_gaps_are_on_the_screen_in_the_file_and_in_the_results(tmp_path, capsys):
    cli.start_log()
    report = LoadReport("weights.pth", loaded=["a"], missing=["b", "c"], unexpected=["d"])
    tell(report, tmp_path / "r.json")
    err = capsys.readouterr().err
    assert err.startswith("warning: weights.pth: 2 parameters missing and 1 keys unexpected") and err.count("\n") == 1
    assert json.loads((tmp_path / "r.json").read_text())["warning"] == mark({}, report)["warning"]


def test_many_keys_of_the_same_fate_are_one_row_a_part():
    keys = ["a.b.c", "a.b.d", "a.b.e", "x.w", "y", "a.z.q", "a.z.r"]
    rows = shortened([(key, "dropped", "why") for key in keys] + [("k", "unexpected", "nothing takes it")])
    assert [key for key, *_ in rows] == ["a.b.* (3 keys)", "x.w", "y", "a.z.* (2 keys)", "k"]
    assert shortened([(key, "dropped", "why") for key in keys[:6]]) == [(key, "dropped", "why") for key in keys[:6]]
