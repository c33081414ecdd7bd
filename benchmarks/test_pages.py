"""The quick default: every page of the dataset, once for each prompt, read well enough."""

import pytest


@pytest.mark.llmprof_gate(cer="<=0.01")
@pytest.mark.parametrize(
    "prompt",
    [
        pytest.param("markdown", marks=pytest.mark.llmprof(overrides=["infer.prompt=markdown"])),
        pytest.param("free", marks=pytest.mark.llmprof(overrides=["infer.prompt=free"])),
    ],
)
def test_pages(llmprof, prompt):
    run = llmprof.run()
    assert run.tokens is not None
