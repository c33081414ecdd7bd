"""What is kept out of files."""

from __future__ import annotations

import pytest

from pytest_llmprof.text.secrets import masked_word


@pytest.mark.parametrize(
    ("word", "masked"),
    [
        ("pipeline.nsys.env={HF_TOKEN: abc}", "pipeline.nsys.env=***"),
        ("+pipeline.ncu.env.HF_TOKEN=abc=d", "+pipeline.ncu.env.HF_TOKEN=***"),
        ("--llmprof-override=pipeline.nsys={env: {A: abc}}", "--llmprof-override=pipeline.nsys=***"),
        ("llmprof_override=pipeline.nsys.env={A: 'a\nb'}", "llmprof_override=pipeline.nsys.env=***"),
        ("pipeline.nsys.enable=true", "pipeline.nsys.enable=true"),
        ("infer.prompt=env", "infer.prompt=env"),
        ("tests/env/pipeline", "tests/env/pipeline"),
    ],
)
def test_arguments(word, masked):
    """Issue 15, line 28."""
    assert masked_word(word) == masked
