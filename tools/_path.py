"""Makes the repository root importable in place of tools/, for every tool: ``import _path`` is its first import.

``python tools/pretrain.py`` puts tools/ first on sys.path, where ``import pretrain`` would find the script
instead of the package. tools/ moves to the end, where a process that re-imports the main script still finds this file.
"""

import sys
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
ROOT = TOOLS.parent

others = [entry for entry in sys.path if Path(entry or ".").resolve() not in (TOOLS, ROOT)]
sys.path[:] = [str(ROOT), *others, str(TOOLS)]
