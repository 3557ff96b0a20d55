"""splitmask_backbones.convert.roles: of a student and a teacher the teacher is taken, whatever they are called."""

from __future__ import annotations

import pytest
import torch

from splitmask_backbones import VisionTransformer
from splitmask_backbones.convert.conversion import convert
from splitmask_backbones.convert.roles import PATCHES, find_tensors, rank, ranked

pytest.importorskip("timm", reason="the extra 'timm' is not installed")


def vit(value: float) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    state = VisionTransformer(img_size=32, embed_dim=64, depth=1, num_heads=1, use_class_token=True).state_dict()
    return {**state, "norm.bias": torch.full((64,), value)}


def under(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": value for name, value in state.items()}


def test_ranks():
    assert [rank(name) for name in ("model.teacher.", "modelTeacher", "momentum_teacher", "teacher_ema")] == [0] * 4
    assert [rank(name) for name in ("model_ema", "ema.module", "state_dict_ema", "target_encoder")] == [1] * 4
    assert [rank(name) for name in ("", "backbone.", "base_encoder", "schema.", "remap", "gemap")] == [2] * 6
    assert [rank(name) for name in ("student", "Student.backbone", "momentum_encoder")] == [3] * 3
    assert ranked(["student.", "b.", "a.", "x_teacher."]) == ["x_teacher.", "a.", "b.", "student."]


FLAT = [("student.backbone.", "teacher.backbone."), ("backbone_student.", "backbone_teacher."), ("", "ema.module.")]
FLAT += [("module.modelStudent.", "module.modelTeacher."), ("a.student.x.", "z.momentum_teacher.x.")]


@pytest.mark.parametrize(("student", "teacher"), FLAT)
def test_under_prefixes_the_teacher_is_taken_and_said(student, teacher, tmp_path):
    torch.save({"state_dict": {**under(student, vit(1.0)), **under(teacher, vit(2.0))}}, tmp_path / "in.pth")
    done = convert(tmp_path / "in.pth", tmp_path / "out.safetensors")
    assert done.encoder.norm.bias[0] == 2
    taken = f"state_dict.{teacher}".strip(".")
    assert f"{taken} is taken" in done.report.dropped.values()


NESTED = [
    ("student", "teacher"),
    ("student_model", "teacher_model"),
    ("encoder", "target_encoder"),
    ("model", "model_ema"),
]


@pytest.mark.parametrize(("student", "teacher"), NESTED)
def test_in_containers_the_teacher_is_taken_and_said(student, teacher, tmp_path):
    content = {student: under("backbone.", vit(1.0)), teacher: under("backbone.", vit(2.0)), "epoch": 3}
    torch.save({"run": content} if student == "student" else content, tmp_path / "in.pth")
    done = convert(tmp_path / "in.pth", tmp_path / "out.safetensors")
    assert done.encoder.norm.bias[0] == 2
    rows = [key for key, why in done.report.dropped.items() if why.endswith("is taken")]
    assert rows == [f"run.{student}.*" if student == "student" else f"{student}.*"]


def test_a_student_alone_is_warned_about(tmp_path, caplog):
    torch.save({"model": under("student.backbone.", vit(1.0))}, tmp_path / "in.pth")
    done = convert(tmp_path / "in.pth", tmp_path / "out.safetensors")
    assert done.encoder.norm.bias[0] == 1 and "holds no teacher, so the student is taken" in caplog.text
    assert done.family == "dino"


def test_two_of_the_same_role_are_warned_about(tmp_path, caplog):
    torch.save({**under("rgb.", vit(1.0)), **under("depth.", vit(2.0))}, tmp_path / "in.pth")
    done = convert(tmp_path / "in.pth", tmp_path / "out.safetensors")
    assert done.encoder.norm.bias[0] == 2
    assert "holds several ViTs, depth is taken and not rgb" in caplog.text


def test_of_moco_the_base_encoder(tmp_path, caplog):
    content = {**under("module.base_encoder.", vit(1.0)), **under("module.momentum_encoder.", vit(2.0))}
    torch.save({"state_dict": content}, tmp_path / "in.pth")
    assert convert(tmp_path / "in.pth", tmp_path / "out.safetensors").encoder.norm.bias[0] == 1


def test_what_holds_a_vit_comes_before_any_role():
    one = {PATCHES[0]: torch.ones(1)}
    content = {
        "teacher": {"fc.weight": torch.ones(1)},
        "net": one,
        "optimizer": {"state": {0: {"exp_avg": torch.ones(1)}}},
    }
    assert find_tensors(content) == (("net",), one, [])
    assert find_tensors({"a": 1, "b": [torch.ones(1)]}) == ((), {}, [])
    assert find_tensors(None) == ((), {}, [])
    assert find_tensors({"model": one, "loss": torch.ones(1)})[0] == ("model",)
