"""The tokenizer: one character, one token, the same in the file that ships."""

from __future__ import annotations

import pytest
from text import ALPHABET
from tokens import (
    BOS,
    EOS,
    FREE,
    GROUNDED,
    ID_OF,
    IMAGE,
    IMAGE_TOKENS,
    SPECIALS,
    TAGS,
    TOKENS,
    VOCABULARY,
    decode,
    encode,
    save,
)

from pytest_llmprof.models.deepseek_ocr import preprocessing, prompts
from pytest_llmprof.models.deepseek_ocr.tokenizers import FileTokenizer

TEXTS = (
    ALPHABET,
    "Two  blanks,\n\na line, a <b> < c, <|x|> and a £ sign",
    "<|ref|>title<|/ref|><|det|>[[1,20,300,999]]<|/det|>\n# A title",
    "<|ref|>table<|/ref|><|det|>[[1,2,3,4]]<|/det|>\n<table><tr><td>a &lt; b</td><td></td></tr></table>",
    GROUNDED,
)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> FileTokenizer:
    path = tmp_path_factory.mktemp("tokens") / "tokenizer.json"
    save(path)
    return FileTokenizer(path)


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip(text: str, shipped: FileTokenizer) -> None:
    ids = encode(text)
    assert decode(ids) == text
    assert shipped.encode(text) == ids
    assert shipped.decode(ids) == text


def test_ids(shipped: FileTokenizer) -> None:
    assert len(set(TOKENS)) == len(TOKENS) <= VOCABULARY
    assert [shipped.token_id(token) for token in SPECIALS] == list(range(len(SPECIALS)))
    assert shipped.token_id("<image>") == IMAGE
    assert (shipped.decode([BOS]), shipped.decode([EOS])) == SPECIALS[:2]
    assert [shipped.token_id(tag) for tag in TAGS] == [ID_OF[tag] for tag in TAGS]
    with pytest.raises(KeyError):
        encode("漢")


def test_it_is_the_projects_prompts_and_picture() -> None:
    assert prompts.prompt_text("free") == FREE
    assert prompts.prompt_text("markdown") == GROUNDED
    assert preprocessing.image_tokens((1, 1), preprocessing.MODES["tiny"]) == IMAGE_TOKENS
