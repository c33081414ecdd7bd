"""Decode rate at answers of a fixed length: every answer goes on to its limit."""

import pytest
from sweep import sweep

pytestmark = pytest.mark.llmprof(overrides=["dataset.limit=1", "infer.ignore_eos=true"])


@pytest.mark.parametrize("tokens", sweep((64, 256, 1024), "infer.max_new_tokens={}"))
def test_decode(llmprof, llmprof_config, tokens):
    run = llmprof.run()
    assert run.tokens == llmprof_config.infer.max_new_tokens
