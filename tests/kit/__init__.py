"""What tests share: fixtures by formula, damaged files, servers, forks."""

from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
GOLDEN = ROOT / "tests" / "golden"
