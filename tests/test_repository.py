"""The repository itself: commands in the README exist, tools answer at once, versions agree, no path of a machine."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.helpers import sources
from tests.helpers.paths import ROOT

TOOLS = sorted(path for path in (ROOT / "tools").glob("*.py") if "cli.run(main)" in path.read_text(encoding="utf-8"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
CORE = {
    "convert.names",
    "errors",
    "files",
    "imagenet_stats",
    "load_report",
    "registry",
}  # modules that stay free of torch


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_tools_were_found() -> None:
    assert {"pretrain", "train_det", "train_seg", "train_cls", "probe", "demo", "demo_data"} <= {
        path.stem for path in TOOLS
    }


@pytest.mark.parametrize("tool", TOOLS, ids=lambda path: path.stem)
@pytest.mark.parametrize("arguments", [["--help"], ["--no-such-option"]], ids=["help", "wrong option"])
def test_help_and_option_errors_come_before_torch(tool: Path, arguments: list[str]) -> None:
    code = (
        "import runpy, sys; sys.argv = [sys.argv[1], *sys.argv[2:]]; sys.path.insert(0, 'tools')\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as stop: code = stop.code or 0\n"
        "heavy = {'torch', 'torchvision', 'timm', 'mmseg', 'mmengine', 'matplotlib', 'faiss', 'cv2'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tool.relative_to(ROOT)), *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    if arguments == ["--help"]:
        assert done.returncode == 0, done.stderr
        assert "--debug" in done.stdout
    else:
        assert done.returncode == 2
        assert re.fullmatch(r"error: .*--no-such-option.*\n|error: .* required.*\n", done.stderr), done.stderr


def test_ci_runs_the_readmes_test_command() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert "\nmake test\n" in script.read_text()
    assert "make test" in README


def test_constraints_fit_the_ranges_and_hold_every_requirement() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    wanted = [Requirement(line) for text in lines for line in text.splitlines() if line and not line.startswith("#")]
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            match = re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9][A-Za-z0-9.]*)", line)
            assert match, f"not a plain pin: {line}"
            pins[canonicalize_name(match[1])] = match[2]
    for requirement in wanted:
        if requirement.name != "splitmask-backbones":
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement
    assert "opencv-python-headless" not in pins  # two packages that own the folder cv2


def test_the_version_is_said_once() -> None:
    from splitmask_backbones import __version__

    assert f"version: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert "attr: splitmask_backbones.__version__" in (ROOT / "setup.cfg").read_text()
    assert "version" not in tomllib.loads((ROOT / "pyproject.toml").read_text()).get("project", {})


def test_no_path_of_a_machine_in_any_file() -> None:
    # Written in parts, so that this file passes as well.
    pattern = re.compile("|".join(("/ro" + "ot/", "/ho" + r"me/\w", "/wo" + "rk/", "/Us" + r"ers/\w", "file:" + "//")))
    for name in sources.tracked():
        try:
            text = (ROOT / name).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found = pattern.search(text)
        assert found is None, f"{name}: {found and found[0]}"


def test_files_are_found_without_git_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    with_git = sources.tracked()
    no_git = subprocess.CompletedProcess([], returncode=128, stdout="")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: no_git)
    found = sources.tracked()
    assert all((ROOT / name).is_file() for name in found)  # a folder such as build.old is none
    assert {name for name in with_git if name.endswith(".py")} <= set(found)
    assert {"README.md", "setup.cfg"} <= set(found)


def test_the_core_needs_torch_alone() -> None:
    """The core is imported with everything else of the project blocked."""
    blocked = ["torchvision", "mmseg", "mmengine", "mmcv", "detectron2", "pretrain", "tools", "timm", "faiss", "cv2"]
    code = f"""
import sys
for name in {blocked}: sys.modules[name] = None
import splitmask_backbones
for name in splitmask_backbones.__all__: getattr(splitmask_backbones, name)
import splitmask_backbones.adapters
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr


def test_errors_and_names_come_without_torch() -> None:
    code = "".join(f"import splitmask_backbones.{name}\n" for name in sorted(CORE))
    done = run_python(code + "import sys; assert 'torch' not in sys.modules")
    assert done.returncode == 0, done.stderr


def test_library_code_does_not_print() -> None:
    pattern = re.compile(r"^\s*print\(", re.MULTILINE)
    for folder in ("splitmask_backbones", "pretrain"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not pattern.search(path.read_text(encoding="utf-8")), path


def test_the_command_line_ends_in_the_tools() -> None:
    """Below tools/*.py no module knows an argparse.Namespace, under which any name may or may not be there."""
    # One that only lists it among the harmless types in other projects' checkpoints.
    allowed = "splitmask_backbones/convert/torch_files.py"
    below = re.compile(r"(splitmask_backbones|pretrain|tools/\w+)/.*\.py")
    found = [
        name
        for name in sources.tracked()
        if below.fullmatch(name)
        and name != allowed
        and re.search(r"\bNamespace\b", (ROOT / name).read_text(encoding="utf-8"))
    ]
    assert not found
