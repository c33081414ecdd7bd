"""Prefill against the prompt's length: a prompt of so many letters behind the picture, and one generated token.

A letter is a token for the embedded reader and for random weights; a checkpoint's tokenizer makes fewer of them.
"""

import pytest

pytestmark = pytest.mark.llmprof(overrides=["dataset.limit=1", "infer.max_new_tokens=1"])
LETTERS = {letters: ("abcdefghijklmnopqrstuvwxyz" * (letters // 26 + 1))[:letters] for letters in (100, 1000, 4000)}


@pytest.mark.parametrize(
    "letters",
    [
        pytest.param(letters, id=str(letters), marks=pytest.mark.llmprof(overrides=[f"infer.prompt={text}"]))
        for letters, text in LETTERS.items()
    ],
)
def test_prefill(llmprof, letters):
    run = llmprof.run()
    assert run.prefill_ms > 0
