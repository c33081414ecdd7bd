"""Models that break their contract: the page fails by name, the others go on."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest
from PIL import Image

from pytest_llmprof.config.schema import InferSettings
from pytest_llmprof.datasets.base import Page
from pytest_llmprof.errors import ModelError
from pytest_llmprof.measure.phases import PhaseRecorder
from pytest_llmprof.models.base import Box, Capabilities, ModelInfo, ParsedOutput, Token
from pytest_llmprof.stages.contract import Answer, check_model
from pytest_llmprof.stages.runner import PagesWorkload

INFO = ModelInfo("model", "embedded", "none", 0, "cpu", "float32", "base", "reference")


class Model:
    """Gives three tokens a page; *change* may replace those of small pages (the page "bad", and "one")."""

    info = INFO
    capabilities = Capabilities(phases=("prefill",))

    def __init__(self, change=lambda tokens: tokens):
        self.change = change
        self.closed = 0

    def generate(self, images, infer, phases):
        try:
            for row, image in enumerate(images):
                now = time.perf_counter_ns()
                tokens = [Token(row, number, None, now, "eos" if number == 2 else None) for number in range(3)]
                yield from self.change(tokens) if image.size == (8, 8) else tokens
        finally:
            self.closed += 1

    def shape_key(self, image, infer):
        return image.size

    def prompt(self, infer):
        return "read"

    def prompt_kind(self, infer):
        return "free"

    def text(self, ids):
        return " ".join(map(str, ids))

    def parse(self, text, size):
        return ParsedOutput(text)


class WhitePage(Page):
    def load(self):
        return Image.new("RGB", (8, 8) if self.name in ("bad", "one") else (9, 9))


def rounds(model, names, *, batch_size=2, warmup=0):
    """Two rounds: pages that were answered, failures by page, samples a round."""
    answered, failed = [], {}
    work = PagesWorkload(
        model,
        [WhitePage(name=name, source=name, path=Path(name)) for name in names],
        InferSettings(batch_size=batch_size, max_new_tokens=4),
        on_answer=lambda page, image, answer, sample: answered.append((page.name, answer.ids, answer.finish)),
        on_failure=lambda page, batch, size, text: failed.update({page.name: text}),
        progress=lambda *_: None,
    )
    recorder = PhaseRecorder("cpu")
    work.warmup(warmup, recorder)
    samples = [[sample.page for sample in work.round(index, recorder)[0]] for index in range(2)]
    return answered, failed, samples


def first(**fields):
    return lambda tokens: [tokens[0]._replace(**fields), *tokens[1:]]


def last(**fields):
    return lambda tokens: [*tokens[:-1], tokens[-1]._replace(**fields)]


def numbered(count):
    return lambda tokens: [tokens[0]._replace(id=number) for number in range(count - 1)] + [tokens[-1]]


BROKEN = {
    "no token": (lambda tokens: [], "no token at all"),
    "no finish": (last(finish=None), "its last token has no finish (eos or length)"),
    "unknown finish": (last(finish="stop"), "token 3 has the finish 'stop'; allowed are eos, length and None"),
    "tokens after the end": (first(finish="eos"), "2 more after token 1, which ended it with eos"),
    "NaN time": (first(time_ns=float("nan")), "the time of token 1 is nan, not an int of nanoseconds"),
    "no time": (last(time_ns=None), "the time of token 3 is None, not an int of nanoseconds"),
    "a time in the future": (last(time_ns=2**62), "the time of token 3 is before that of the token in front of it"),
    "a time of another clock": (first(time_ns=1), "the time of token 1 is before that of the token in front of it"),
    "too many tokens": (numbered(5), "more tokens than infer.max_new_tokens=4 allows"),
    "neither id nor text": (first(id=None), "token 1 has neither an int as its id nor a str as its text"),
    "bytes as text": (first(id=None, text=b"one"), "token 1 has neither an int as its id nor a str as its text"),
    "a float as id": (first(id=1.5), "token 1 has neither an int as its id nor a str as its text"),
    "text among ids": (last(id=None, text="three"), "token 3 has no id, unlike the first one"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_page_whose_tokens_break_the_contract_fails_alone(name):
    change, text = BROKEN[name]
    answered, failed, samples = rounds(Model(change), ["bad", "good"])
    assert set(failed) == {"bad"}
    assert failed["bad"].startswith(f"the model's answer breaks its contract: {text}")
    assert answered == [("good", [0, 1, 2], "eos")]
    assert samples == [["good"], ["good"]]


def test_a_page_that_fails_in_the_warm_up_is_not_run_again():
    model = Model(lambda tokens: tokens[:-1])
    answered, failed, samples = rounds(model, ["bad"], warmup=1)
    assert (answered, list(failed), samples) == ([], ["bad"], [[], []])
    assert model.closed == 1


def test_a_model_that_never_stops_is_stopped():
    model = Model(lambda tokens: (tokens[0] for _ in itertools.count()))
    _, failed, _ = rounds(model, ["bad", "good"])
    assert "more tokens than infer.max_new_tokens=4 allows" in failed["bad"]
    assert model.closed >= 1


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (first(row=2), "generate() yielded a token of row 2; the batch has rows 0 to 1"),
        (first(row=-1), "generate() yielded a token of row -1; the batch has rows 0 to 1"),
        (first(row=None), "generate() yielded a token of row None; the batch has rows 0 to 1"),
        (lambda tokens: ["a", "b"], "generate() yielded a str, not a Token"),
    ],
)
def test_a_token_of_no_page_fails_its_batch_and_the_next_one_runs(change, text):
    answered, failed, samples = rounds(Model(change), ["one", "two", "three"])
    assert failed == {"one": text, "two": text}
    assert [name for name, _, _ in answered] == ["three"]
    assert samples == [["three"], ["three"]]


def test_a_shape_key_that_cannot_be_compared_fails_its_page():
    class Listed(Model):
        def shape_key(self, image, infer):
            return [8, 8]

    _, failed, _ = rounds(Listed(), ["one"], warmup=1)
    assert failed["one"].startswith("TypeError")


@pytest.mark.parametrize(
    ("text", "parsed", "error"),
    [
        (b"bytes", ParsedOutput("a"), "text() returned a bytes, not a str"),
        (None, ParsedOutput("a"), "text() returned a NoneType, not a str"),
        ("a", "a", "parse() returned a str, not a ParsedOutput"),
        ("a", None, "parse() returned a NoneType, not a ParsedOutput"),
        ("a", ParsedOutput(b"a"), "Expected `str`, got `bytes` - at `$.plain`"),
        ("a", ParsedOutput("a", None), "'NoneType' object is not iterable"),
        ("a", ParsedOutput("a", ("box",)), "Expected `object`, got `str` - at `$.boxes[0]`"),
        ("a", ParsedOutput("a", (Box("l", (1, 2, 3, "4")),)), "Expected `int`, got `str` - at `$.boxes[0].box[3]`"),
        ("a", ParsedOutput("a", (Box("l", (1, 2, 3)),)), "Expected `array` of length 4, got 3 - at `$.boxes[0].box`"),
        ("a", ParsedOutput("a", (Box(7, (1, 2, 3, 4)),)), "Expected `str`, got `int` - at `$.boxes[0].label`"),
        ("a", ParsedOutput("a", (), "none"), "Expected `int`, got `str` - at `$.bad_boxes`"),
        ("a", ParsedOutput("a", (), -1), "a ParsedOutput with bad_boxes=-1, which is no count"),
    ],
)
def test_a_text_or_a_reading_of_another_type_is_refused(text, parsed, error):
    model = Model()
    model.text = lambda ids: text
    model.parse = lambda text, size: parsed
    with pytest.raises(ModelError) as raised:
        Answer(ids=[1]).parse(model, Image.new("RGB", (8, 8)))
    assert error in str(raised.value)


def test_boxes_without_an_area_in_the_image_are_bad_ones():
    """A format's function may take what an answer says for a box."""
    model = Model()
    good, partly_out = (1, 2, 3, 4), (-1, 6, 10**30, 9)
    corners = [good, (3, 2, 1, 4), (1, 4, 3, 2), (1, 2, 1, 4), (-9, -9, -1, -1), (8, 0, 9, 8), partly_out]
    model.parse = lambda text, size: ParsedOutput("a", tuple(Box("title", one) for one in corners), 2)
    _, found = Answer(ids=[1]).parse(model, Image.new("RGB", (8, 8)))
    assert [box.box for box in found.boxes] == [good, partly_out]
    assert found.bad_boxes == 2 + 5


def test_a_reading_that_keeps_the_contract_is_handed_on():
    model = Model()
    whole = ParsedOutput("a", (Box("title", (1, 2, 3, 4), "b"),), 2)
    model.parse = lambda text, size: whole
    assert Answer(ids=[1, 2]).parse(model, Image.new("RGB", (8, 8))) == ("1 2", whole)
    check_model(model, InferSettings())


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("info", {"name": "model"}, "info is a dict, not a ModelInfo"),
        ("info", ModelInfo("m", "embedded", "d", None, "cpu", "float32", "b", "r"), "Expected `int`, got `null`"),
        ("info", ModelInfo("m", "embedded", "d", 0, "cpu", "float32", "b", "r", {"a": object()}), "unsupported"),
        ("capabilities", None, "capabilities is a NoneType, not a Capabilities"),
        ("prompt", lambda infer: None, "prompt() returned a NoneType, not a str"),
        ("prompt_kind", lambda infer: "html", "prompt_kind() returned 'html'; allowed are markdown, free, other"),
    ],
)
def test_what_a_model_says_of_itself_is_checked_once_it_is_loaded(name, value, text):
    model = Model()
    setattr(model, name, value)
    with pytest.raises(ModelError) as raised:
        check_model(model, InferSettings())
    assert str(raised.value).startswith("the model breaks its contract: ")
    assert text in str(raised.value)
