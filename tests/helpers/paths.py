"""Where things lie, for tests."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The checkout."""

TOOLS = ROOT / "tools"
SHARED_DATA = ROOT.parent / "shared" / "data"
