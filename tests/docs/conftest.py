"""The helpers of tests/plugin run pytest in this process, those of tests/compare make run directories; tools/ writes
the documents."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
for folder in ("tests/plugin", "tests/compare", "tools"):
    sys.path.insert(0, str(ROOT / folder))
