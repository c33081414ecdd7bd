"""Throughput against the batch size, over eight pages with answers of one length."""

import pytest
from sweep import sweep

pytestmark = pytest.mark.llmprof(
    overrides=["dataset.limit=8", "infer.max_new_tokens=64", "infer.ignore_eos=true", "measure.rounds=2"]
)


@pytest.mark.parametrize("size", sweep((1, 2, 4, 8), "infer.batch_size={}"))
def test_batch(llmprof, size):
    run = llmprof.run()
    assert run.pages_per_s > 0
