from __future__ import annotations

import pytest
from traces import one_page

from pytest_llmprof.analysis.trace import Trace
from pytest_llmprof.stages.torch_profiler.kineto import read_trace


@pytest.fixture
def page() -> Trace:
    """The trace of `traces.one_page`."""
    return read_trace(one_page().text().encode())
