"""One model through its engines, for benchmarks/compare_models.py."""

import pytest


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param(name, marks=pytest.mark.llmprof(overrides=[f"infer.engine={name}"]))
        for name in ("reference", "compiled")
    ],
)
def test_model(llmprof, engine):
    llmprof.run()
