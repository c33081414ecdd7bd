"""The helpers of tests/plugin run pytest in this process, those of tests/compare make run directories."""

import sys
from pathlib import Path

for room in ("plugin", "compare"):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / room))
