"""The files of the project, for tests that read them."""

from __future__ import annotations

import subprocess

from tests.helpers.paths import ROOT

FOLDERS = ("splitmask_backbones", "pretrain", "tools", "tests", "det_configs", "seg_configs", "docs")


def tracked() -> list[str]:
    """Returns the paths, below the checkout, of all files that git tracks or would; where there is no git, of ours."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0 and listed.stdout:
        names = listed.stdout.splitlines()
    else:
        found = [*(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")), *ROOT.glob("*.*")]
        names = [path.relative_to(ROOT).as_posix() for path in found]
    return sorted(name for name in names if (ROOT / name).is_file())
