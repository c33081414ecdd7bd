"""Throughput against the batch size, over eight pages with answers of one length.

An engine that reads fewer pages at once says so; such sizes are skipped with its reason.
"""

import pytest
from sweep import sweep, why_not

pytestmark = pytest.mark.llmprof(
    overrides=["dataset.limit=8", "infer.max_new_tokens=64", "infer.ignore_eos=true", "measure.rounds=2"]
)


@pytest.mark.parametrize("size", sweep((1, 2, 4, 8), "infer.batch_size={}"))
def test_batch(llmprof, llmprof_config, request, size):
    if llmprof_config.infer.batch_size > 1 and (reason := why_not(request)):
        pytest.skip(reason)
    run = llmprof.run()
    assert run.pages_per_s > 0
