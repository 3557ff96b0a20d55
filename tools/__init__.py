"""Command-line tools. They are run from a checkout: ``python tools/NAME.py``, or ``python -m tools.NAME``."""

import sys
from pathlib import Path

# Each tool begins with `import _path`, which lies beside it: with -m, Python looks for it in the root alone.
if (here := str(Path(__file__).resolve().parent)) not in sys.path:
    sys.path.append(here)
