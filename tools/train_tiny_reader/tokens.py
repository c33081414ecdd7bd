"""The reader's tokenizer: one token a character, plus the special tokens of DeepSeek-OCR and the tags of tables."""

from __future__ import annotations

from pathlib import Path

from text import ALPHABET

__all__ = [
    "BOS", "BUCKETS", "EOS", "FREE", "GROUNDED", "ID_OF", "IMAGE", "IMAGE_TOKENS", "PAD", "SPECIALS", "TAGS", "TOKENS",
    "VOCABULARY", "decode", "encode", "save",
]

SPECIALS = (
    "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>", "<unk>", "<image>", "<|grounding|>",
    "<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>",
)
TAGS = ("<table>", "</table>", "<tr>", "</tr>", "<td>", "</td>")
TOKENS = (*SPECIALS, "\n", *ALPHABET, *TAGS)
VOCABULARY = 144
"""Rows of the embedding: TOKENS and a few never used."""
BOS, EOS, PAD, UNKNOWN, IMAGE = range(5)
IMAGE_TOKENS = 73
"""Places a 512x512 page takes: 8 rows of 8 and a newline each, and a separator."""
FREE = "<image>\nFree OCR."
GROUNDED = "<image>\n<|grounding|>Convert the document to markdown."
BUCKETS = (182, 310, 502)
"""Lengths texts (prompt after <image>, answer, EOS) are padded to; with BOS and the page 256, 384 and 576 tokens."""
ID_OF = {token: index for index, token in enumerate(TOKENS)}


def encode(text: str) -> list[int]:
    """Token ids of *text*. Raises KeyError for a character the reader does not know."""
    ids: list[int] = []
    start = 0
    while start < len(text):
        if text[start] == "<":
            token = next((token for token in (*SPECIALS, *TAGS) if text.startswith(token, start)), "<")
        else:
            token = text[start]
        ids.append(ID_OF[token])
        start += len(token)
    return ids


def decode(ids: list[int]) -> str:
    """The text of token ids, special tokens included."""
    return "".join(TOKENS[index] if index < len(TOKENS) else "<unk>" for index in ids)


def save(path: Path) -> None:
    """Write the same as a `tokenizer.json` of the library `tokenizers`."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({token: ID_OF[token] for token in TOKENS}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (*SPECIALS, *TAGS)])
    tokenizer.save(str(path))
