"""Properties of what reads foreign input, over generated and broken input: `pytest tests/fuzz`.

The profile `short` (the default) takes seconds; `LLMPROF_FUZZ=long` (or `--hypothesis-profile=long`) runs thousands of
cases for each property.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hypothesis import HealthCheck, settings

sys.path[:0] = [str(Path(__file__).parents[1] / room) for room in ("analysis", "compare", "report")]

# Files are written for each case, and machines differ: neither is a fault of a property.
_COMMON = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))
settings.register_profile("short", _COMMON, max_examples=30, derandomize=True)
settings.register_profile("long", _COMMON, max_examples=10_000)
settings.load_profile(os.environ.get("LLMPROF_FUZZ", "short"))
