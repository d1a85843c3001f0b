"""Lets the driver find tests/formula.py, and src/clip where it is not installed. Import it before what needs them."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))
sys.path.insert(0, str(ROOT / "tests"))
