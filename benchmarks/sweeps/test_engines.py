"""The engines against one another: every packaged preset of `infer`, on one page with an answer of 256 tokens.

An engine that cannot run on this machine says so when the model is loaded; its test is skipped with that reason
(`pytest -rs` shows it). The reference runs everywhere.
"""

import pytest
from sweep import sweep

from pytest_llmprof.config.paths import conf_dir
from pytest_llmprof.errors import ModelError

pytestmark = pytest.mark.llmprof(
    overrides=["dataset.limit=1", "infer.max_new_tokens=256", "infer.ignore_eos=true"]
)
PRESETS = sorted(path.stem for path in (conf_dir() / "infer").glob("*.yaml"))


@pytest.mark.parametrize("preset", sweep(PRESETS, "infer={}"))
def test_engine(llmprof, request, preset):
    if preset != "reference":
        try:
            request.getfixturevalue("llmprof_model")
        except ModelError as error:
            pytest.skip(str(error))
    run = llmprof.run()
    assert run.tokens is not None
