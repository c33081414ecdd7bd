"""The contract of models (`pytest_llmprof.models.base`), checked once where their answers enter.

What breaks it fails its page by name; the other pages go on.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import msgspec

from pytest_llmprof.errors import ModelError
from pytest_llmprof.models.base import Box, Capabilities, LoadedModel, ModelInfo, ParsedOutput, Token

if TYPE_CHECKING:
    from PIL.Image import Image

    from pytest_llmprof.config.schema import InferSettings

_FINISHES = ("eos", "length")
_KINDS = ("markdown", "free", "other")


@dataclass
class Answer:
    """The tokens of one page as they came."""

    ids: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    times_ns: list[int] = field(default_factory=list)
    finish: str | None = None
    fault: str | None = None
    """How it breaks the contract. The other fields then say nothing."""

    @property
    def key(self) -> tuple[int, ...] | str:
        """What must be equal in every round."""
        return tuple(self.ids) if self.ids else "".join(self.pieces)

    def parse(self, model: LoadedModel, image: Image) -> tuple[str, ParsedOutput]:
        """Its text, special tokens included, and what *model* reads in it; boxes that have no area in *image* are bad
        ones. Raises what the model raises, and `ModelError` for results of another type."""
        text = model.text(self.ids) if self.ids else "".join(self.pieces)
        if not isinstance(text, str):
            raise ModelError(f"text() returned a {type(text).__name__}, not a str")
        parsed = model.parse(text, image.size)
        if not isinstance(parsed, ParsedOutput):
            raise ModelError(f"parse() returned a {type(parsed).__name__}, not a ParsedOutput")
        try:
            boxes = [msgspec.structs.asdict(box) if isinstance(box, Box) else box for box in parsed.boxes]
            found = msgspec.convert({**vars(parsed), "boxes": boxes}, ParsedOutput)
        except (TypeError, msgspec.ValidationError) as error:
            raise ModelError(f"parse() returned a ParsedOutput of other types: {error}") from error
        if found.bad_boxes < 0:
            raise ModelError(f"parse() returned a ParsedOutput with bad_boxes={found.bad_boxes}, which is no count")
        good = tuple(box for box in found.boxes if _in_image(box, image.size))
        return text, replace(found, boxes=good, bad_boxes=found.bad_boxes + len(found.boxes) - len(good))


def _in_image(box: Box, size: tuple[int, int]) -> bool:
    """Whether a part of *box* lies in an image of *size*: readers of an answer may take what it says for granted."""
    x1, y1, x2, y2 = box.box
    return max(x1, 0) < min(x2, size[0]) and max(y1, 0) < min(y2, size[1])


def read_answers(tokens: Sequence[Any], rows: int, most: int, begin_ns: int, end_ns: int) -> list[Answer]:
    """Sort the tokens of a batch of *rows* pages by page. A page whose tokens break the contract has a `fault`.

    *most* tokens a page are allowed; all came between *begin_ns* and *end_ns*. Raises `ModelError` for a token that is
    of no page.
    """
    by_row: list[list[Token]] = [[] for _ in range(rows)]
    for token in tokens:
        if not isinstance(token, Token):
            raise ModelError(f"generate() yielded a {type(token).__name__}, not a Token")
        if not isinstance(token.row, int) or not 0 <= token.row < rows:
            raise ModelError(f"generate() yielded a token of row {token.row!r}; the batch has rows 0 to {rows - 1}")
        by_row[token.row].append(token)
    return [_answer(row, most, begin_ns, end_ns) for row in by_row]


def _answer(tokens: Sequence[Token], most: int, begin_ns: int, end_ns: int) -> Answer:
    if (fault := _fault(tokens, most, begin_ns, end_ns)) is not None:
        return Answer(fault=f"the model's answer breaks its contract: {fault}")
    return Answer(
        ids=[operator.index(token.id) for token in tokens if token.id is not None],
        pieces=[token.text for token in tokens if token.id is None and token.text is not None],
        times_ns=[token.time_ns for token in tokens],
        finish=tokens[-1].finish,
    )


def _fault(tokens: Sequence[Any], most: int, begin_ns: int, end_ns: int) -> str | None:
    if not tokens:
        return "no token at all, not even one that ends it"
    if len(tokens) > most:
        return f"more tokens than infer.max_new_tokens={most} allows"
    before = begin_ns
    for number, token in enumerate(tokens, 1):
        if not isinstance(token.time_ns, int):
            return f"the time of token {number} is {token.time_ns!r}, not an int of nanoseconds"
        if token.time_ns < before or (number == len(tokens) and token.time_ns > end_ns):
            return (
                f"the time of token {number} is before that of the token in front of it, or outside its batch: "
                "Token.time_ns is time.perf_counter_ns() when the token was there"
            )
        before = token.time_ns
        if not (isinstance(token.text, str) if token.id is None else hasattr(token.id, "__index__")):
            return f"token {number} has neither an int as its id nor a str as its text"
        if (token.id is None) != (tokens[0].id is None):
            return f"token {number} has {'no ' if token.id is None else 'an '}id, unlike the first one"
        if token.finish is not None and token.finish not in _FINISHES:
            return f"token {number} has the finish {token.finish!r}; allowed are eos, length and None"
        if token.finish is not None and number < len(tokens):
            return f"{len(tokens) - number} more after token {number}, which ended it with {token.finish}"
    return "its last token has no finish (eos or length)" if tokens[-1].finish is None else None


def check_model(model: LoadedModel, infer: InferSettings) -> None:
    """Raise `ModelError` where what a loaded model says of itself is of another type than the contract's."""
    try:
        for name, kind in (("info", ModelInfo), ("capabilities", Capabilities)):
            if not isinstance(getattr(model, name), kind):
                raise TypeError(f"{name} is a {type(getattr(model, name)).__name__}, not a {kind.__name__}")
        msgspec.json.decode(msgspec.json.encode(model.info), type=ModelInfo)
        if not isinstance(prompt := model.prompt(infer), str):
            raise TypeError(f"prompt() returned a {type(prompt).__name__}, not a str")
        if (prompt_kind := model.prompt_kind(infer)) not in _KINDS:
            raise TypeError(f"prompt_kind() returned {prompt_kind!r}; allowed are {', '.join(_KINDS)}")
    except (TypeError, msgspec.MsgspecError) as error:
        raise ModelError(f"the model breaks its contract: {error}") from error
