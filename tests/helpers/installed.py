"""The wheel, and an environment that holds torch, what torch needs, and nothing else."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from tests.helpers.paths import ROOT

SITE = Path(str(metadata.distribution("torch").locate_file(""))).resolve()
"""Where this environment keeps its packages."""


def build_wheel(folder: Path) -> Path:
    """Returns the wheel, built from a copy: `pip wheel` leaves files behind and takes old ones along."""
    source = folder / "source"
    skip = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in ("splitmask_backbones", "pretrain", "tools"):
        shutil.copytree(ROOT / name, source / name, ignore=skip)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    options = ["--no-build-isolation", "--no-deps", "--quiet", "--wheel-dir", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(source)], check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def requirements_of(*names: str) -> set[str]:
    """Returns the distributions and all that they need, without extras."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        found.add(name)
        for line in metadata.distribution(name).requires or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
                for extra in requirement.extras:  # torch needs cuda-toolkit[cublas, ...]
                    waiting += _of_extra(requirement.name, extra)
    return found


def _of_extra(name: str, extra: str) -> list[str]:
    lines = map(Requirement, metadata.distribution(name).requires or [])
    return [r.name for r in lines if r.marker is not None and r.marker.evaluate({"extra": extra})]


def environment_with(folder: Path, *names: str) -> Path:
    """Returns the python of a fresh environment in which links stand for the distributions and their requirements."""
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    for name in requirements_of(*names):
        tops = {file.parts[0] for file in metadata.distribution(name).files or []} - {"..", "__pycache__"}
        for top in tops:
            if not (site / top).exists():
                (site / top).symlink_to(SITE / top)
    return folder / "bin" / "python"


def plain_environment() -> dict[str, str]:
    """Returns the variables of a shell in which nothing leads to this checkout."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_", "PIP_"))}


def install(python: Path, wheel: Path, extras: str) -> str:
    """Installs the wheel with no index to take anything else from; returns what pip says."""
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-index", f"{wheel}[{extras}]"]
    settings = {"PIP_CONFIG_FILE": os.devnull}  # which may name folders of wheels
    done = subprocess.run(command, env=plain_environment() | settings, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
