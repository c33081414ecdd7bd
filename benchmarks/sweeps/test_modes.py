"""Each input mode on one A4 page: the page end to end, and the vision encoder alone."""

import pytest
from sweep import sweep

pytestmark = pytest.mark.llmprof(
    overrides=["dataset=documents", "dataset.limit=1", "infer.max_new_tokens=32", "infer.ignore_eos=true"]
)
MODES = ("tiny", "small", "base", "large", "gundam")  # scope: one model is kept, so a mode's tests run together


@pytest.mark.parametrize("mode", sweep(MODES, "model.mode={}"), scope="module")
def test_page(llmprof, mode):
    run = llmprof.run()
    assert run.vision_ms > 0


@pytest.mark.parametrize("mode", sweep(MODES, "model.mode={}"), scope="module")
def test_vision_encoder(llmprof, llmprof_model, llmprof_dataset, mode):
    page = llmprof_dataset[0].load()
    run = llmprof.measure(llmprof_model.encoder([page]))
    (features,) = run.value
    assert features.isfinite().all()
