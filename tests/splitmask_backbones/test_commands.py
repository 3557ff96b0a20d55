"""The wheel in an environment that has torch alone: what it brings, a backbone, and the two commands."""

from __future__ import annotations

import configparser
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from splitmask_backbones import __version__, commands, create_encoder, save_encoder
from tests.helpers import installed
from tests.helpers.paths import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed.build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the `bin` of an environment with torch and the wheel."""
    python = installed.environment_with(tmp_path_factory.mktemp("bare") / "env", "torch", "numpy", "safetensors")
    # The extras for programs that have their framework: nothing is looked for, let alone replaced.
    said = installed.install(python, wheel, "detectron2,mmseg,torchvision")
    (done,) = [line for line in said.splitlines() if line.startswith("Successfully installed")]
    assert done.split()[2:] == ["splitmask-backbones-" + __version__]
    assert "uninstall" not in said and "does not provide the extra" not in said
    return python.parent


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = installed.plain_environment()
    return subprocess.run(list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True, check=False)


def test_names_in_site_packages(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"splitmask_backbones", "pretrain"}
    assert {"splitmask_backbones/py.typed", "pretrain/py.typed"} <= set(names)
    assert not any(name.endswith("train_det.py") for name in names)


def test_every_package_is_named_in_setup_cfg() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    named = {name for name in setup["options"]["packages"].split() if "._checkout." not in name}
    found = {
        path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for top in ("splitmask_backbones", "pretrain")
        for path in (ROOT / top).rglob("__init__.py")
    }
    assert named == found


def test_torch_alone_builds_a_backbone(bare: Path, tmp_path: Path) -> None:
    code = """
import importlib.util, torch
for absent in ("torchvision", "timm", "lightning_fabric", "PIL", "tools"):
    assert importlib.util.find_spec(absent) is None, absent
from splitmask_backbones import create_encoder
from splitmask_backbones.pyramid import build_pyramid
encoder = create_encoder("vit_tiny", img_size=64)
maps = build_pyramid("simple", encoder, 32)(encoder.forward_maps(torch.rand(1, 3, 64, 80)), image_size=(64, 80))
print([tuple(level.shape) for level in maps])
"""
    done = run(bare / "python", "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[(1, 32, 16, 20), (1, 32, 8, 10), (1, 32, 4, 5), (1, 32, 2, 3)]\n"


@pytest.mark.parametrize("command", ["splitmask-pretrain", "splitmask-convert"])
def test_commands_answer(bare: Path, tmp_path: Path, command: str) -> None:
    (tmp_path / "tools").mkdir()  # of another project
    (tmp_path / "tools" / "__init__.py").write_text("raise SystemExit('another project')")
    done = run(bare / command, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {command} ")
    done = run(bare / command, "--no-such-option", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown option '--no-such-option'")
    assert done.stderr.count("\n") == 1


def test_a_missing_extra_is_named(bare: Path, image_folder: Path, tmp_path: Path) -> None:
    options = ("--recipe", "tiny", "--data", image_folder, "--output", tmp_path / "run")
    done = run(bare / "splitmask-pretrain", *options, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the package '")
    assert "splitmask-backbones[pretrain]" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow  # two processes that import everything
def test_commands_work(bare: Path, image_folder: Path, tmp_path: Path) -> None:
    """With the libraries that they need: the same bytes as the checkout's tool."""
    (site,) = bare.parent.glob("lib/python*/site-packages")
    everything = site / "everything.pth"
    everything.write_text(f"{installed.SITE}\n")
    options = ("--recipe", "tiny", "--data", image_folder, "--steps", "2", "--workers", "1", "--device", "cpu")
    try:
        done = run(bare / "splitmask-pretrain", *options, "--output", tmp_path / "run", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        torch.manual_seed(0)
        save_encoder(create_encoder("vit_tiny", img_size=64, depth=1), tmp_path / "encoder.safetensors")
        done = run(bare / "splitmask-convert", "encoder.safetensors", "timm.safetensors", "--to", "timm", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    finally:
        everything.unlink()
    assert (tmp_path / "run" / "encoder.safetensors").exists()
    assert (tmp_path / "timm.safetensors").exists()


def test_a_checkout_runs_its_own_tools() -> None:
    assert commands.tools_root() == ROOT


@pytest.mark.slow  # mypy reads torch
def test_a_users_types_are_checked(bare: Path, tmp_path: Path) -> None:
    """With py.typed: a right program passes, and a wrong type is found."""
    right = "from splitmask_backbones import create_encoder\n\nencoder = create_encoder('vit_tiny')\n"
    for name, code in {"right": right, "wrong": right + "depth: str = encoder.depth\n"}.items():
        script = tmp_path / f"{name}.py"
        script.write_text(code)
        options = ("--python-executable", bare / "python", "--strict", "--follow-imports=silent")
        done = run(sys.executable, "-m", "mypy", *options, script, cwd=tmp_path)
        assert (done.returncode == 0) == (name == "right"), done.stdout
    assert 'expression has type "int", variable has type "str"' in done.stdout
