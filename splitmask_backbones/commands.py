"""The commands that an installation brings: `splitmask-pretrain` and `splitmask-convert`, the tools of those names.

They live in `tools/` of a checkout. That name is too common for site-packages (the checkouts of detectron2 and mmseg
have a folder `tools` too), so the wheel keeps the few files that the two need below this package, and only a process of
theirs sees them as `tools`. No other module imports this one, and it imports none of this package.
"""

import importlib
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
INSTALLED = HERE / "_checkout"
"""What `setup.cfg` calls package_dir: `tools` of the checkout, in a wheel."""


def tools_root() -> Path:
    """Returns the folder that holds `tools`: that of a wheel, else the checkout."""
    return INSTALLED if (INSTALLED / "tools").is_dir() else HERE.parent


def pretrain() -> None:
    """Runs tools/pretrain.py."""
    _run("pretrain")


def convert() -> None:
    """Runs tools/convert.py."""
    _run("convert")


def _run(name: str) -> None:
    sys.path.insert(0, str(tools_root()))
    tool = importlib.import_module(f"tools.{name}")
    tool.cli.run(tool.main)
