"""Text to token ids and back: a checkpoint's tokenizer.json, or the built-in one of random weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pytest_llmprof.errors import ModelError
from pytest_llmprof.models.deepseek_ocr.parsing import SPECIAL
from pytest_llmprof.models.deepseek_ocr.prompts import IMAGE

if TYPE_CHECKING:
    from tokenizers import Tokenizer as FastTokenizer

_TAGS = ("<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|grounding|>")


class Tokenizer(Protocol):
    """What the model needs from a tokenizer."""

    def encode(self, text: str) -> list[int]:
        """Token ids of *text*, without begin and end tokens; names of special tokens become their ids."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of *ids*, special tokens included; ids without a text are left out."""

    def token_id(self, token: str) -> int | None:
        """The id of *token*, or None."""


class FileTokenizer:
    """A tokenizer.json, read with the `tokenizers` library alone: no code of the checkpoint runs."""

    def __init__(self, file: Path) -> None:
        """Raise `ModelError` where *file* is no tokenizer."""
        from tokenizers import Tokenizer as FastTokenizer

        try:
            self._tokenizer: FastTokenizer = FastTokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception for a broken file
            raise ModelError(f"{file} is not a tokenizer: {error}") from error

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def token_id(self, token: str) -> int | None:
        found = self._tokenizer.token_to_id(token)
        return None if found is None else int(found)


class BuiltInTokenizer:
    """A deterministic tokenizer for random weights, whose answers mean nothing but must be readable.

    Ids: begin 0, end 1, padding 2, the 256 bytes from 3, the released prompts' words, then made-up words; the image
    token at *image_token_id* and the tags right after it. Every id below *vocab_size* has a text.
    """

    _BYTES = 3
    _WORDS = ("Free", " OCR", "Convert", " the", " document", " to", " mark", "down")

    def __init__(self, vocab_size: int, image_token_id: int) -> None:
        """Raise `ModelError` where the vocabulary is too small."""
        words = self._BYTES + 256
        tags = (IMAGE, *_TAGS)
        if image_token_id < words + len(self._WORDS) or image_token_id + len(tags) > vocab_size:
            raise ModelError(
                f"the built-in tokenizer cannot put {IMAGE} at {image_token_id} of {vocab_size}: it needs "
                f"{words + len(self._WORDS)} ids before it and {len(_TAGS)} after it"
            )
        self._size = vocab_size
        self._named = dict(enumerate(SPECIAL))
        self._named |= {image_token_id + offset: tag for offset, tag in enumerate(tags)}
        self._named |= {words + offset: word for offset, word in enumerate(self._WORDS)}
        self._ids = {token: number for number, token in self._named.items()}
        longest_first = sorted(self._ids, key=len, reverse=True)
        self._pieces = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for piece in self._pieces.split(text):
            known = self._ids.get(piece)
            ids.extend([known] if known is not None else [self._BYTES + byte for byte in piece.encode()])
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer.decode`. Bytes that are not UTF-8 become U+FFFD."""
        return b"".join(map(self._piece, ids)).decode(errors="replace")

    def token_id(self, token: str) -> int | None:
        return self._ids.get(token)

    def _piece(self, number: int) -> bytes:
        if not 0 <= number < self._size:
            return b""
        named = self._named.get(number)
        if named is not None:
            return named.encode()
        if number < self._BYTES + 256:
            return bytes([number - self._BYTES])
        return _word(number).encode()


def _word(number: int) -> str:
    """A pronounceable word after a space; each *number* gives another one."""
    consonants, vowels = "bdfghklmnprstvwz", "aeiou"
    word = ""
    while number:
        number, syllable = divmod(number, len(consonants) * len(vowels))
        word += consonants[syllable // len(vowels)] + vowels[syllable % len(vowels)]
    return f" {word}"
