"""A third party's plugin, as one would write it in a conftest: a model in plain Python, a stage, a dataset.

The model answers with its prompt, word by word. Some prompts make it misbehave.
"""

import time
import weakref
from dataclasses import dataclass
from pathlib import Path

import pytest

from pytest_llmprof.datasets.base import DatasetPlugin, Page
from pytest_llmprof.models.base import Capabilities, ModelInfo, ModelPlugin, ParsedOutput, Token
from pytest_llmprof.stages.base import StagePlugin

HERE = Path(__file__).parent
HELD = []
"""What the prompt `oom` had at hand, weakly."""


@dataclass(frozen=True)
class EchoPrediction:
    strip_special_tokens: bool = False


@dataclass(frozen=True)
class EchoOptions:
    prediction: EchoPrediction = EchoPrediction()
    times: int = 1


def check_echo(options):
    if options.times < 1:
        yield "times", options.times, "an integer >= 1"


class Echo:
    capabilities = Capabilities(phases=("prefill", "decode"), profiler=False, token_ids=False)

    def __init__(self, settings):
        self.info = ModelInfo(
            name="echo",
            weights="embedded",
            digest="echo:1",
            parameters=0,
            device="cpu",
            dtype="float32",
            mode=settings.mode,
            engine="reference",
        )

    def generate(self, images, infer, phases):
        words = infer.prompt.split(" ")[: infer.max_new_tokens]
        if words[0] == "mute":
            return
        for row in range(len(images)):
            with phases.phase("prefill"):
                if words[0] == "boom":
                    raise RuntimeError("the echo broke\nin two lines")
                if words[0] == "oom":
                    self._fill()
                if words[0] == "interrupt":
                    raise KeyboardInterrupt
                yield self._token(row, words, 0)
            with phases.phase("decode"):
                for number in range(1, len(words)):
                    if words[0] == "slow":
                        Path("slow.started").touch()
                        time.sleep(60)
                    yield self._token(row, words, number)

    @staticmethod
    def _fill():
        import torch

        held = torch.zeros(1000)
        HELD.append(weakref.ref(held))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total of 1 GiB")

    @staticmethod
    def _token(row, words, number):
        last = number + 1 == len(words)
        text = words[number] + ("" if last else " ")
        return Token(row, None, text, time.perf_counter_ns(), "eos" if last else None)

    def prompt(self, infer):
        return infer.prompt

    def prompt_kind(self, infer):
        return "free"

    def text(self, ids):
        raise AssertionError("the echo has no token ids")

    def parse(self, text, size):
        if text.startswith("garbled"):
            raise ValueError("no luck")
        if text.startswith("typeless"):
            return ParsedOutput(text.encode())
        return ParsedOutput(text.replace("<end>", ""))

    def shape_key(self, image, infer):
        return image.size

    def close(self):
        pass


def pages(settings):
    from PIL import Image

    found = []
    for name, size in (("one", (40, 30)), ("two", (30, 40)))[: settings.limit]:
        path = HERE / f"echo-{name}.png"
        if not path.exists():
            Image.new("RGB", size, "white").save(path)
        found.append(Page(name, path.name, path, truth_free="hello world"))
    return found


@dataclass(frozen=True)
class CountOptions:
    repeat: int = 2
    label: str = "count"


def check_count(options):
    if options.repeat < 1:
        yield "repeat", options.repeat, "an integer >= 1"


def count(context):
    """Run the pages `repeat` times, and leave a file."""
    from pytest_llmprof.measure.phases import DOMAIN

    options = context.stage.options
    recorder = context.recorder(DOMAIN)
    for index in range(options.repeat):
        samples, seconds = context.workload.round(index, recorder)
        context.result.samples += samples
        context.result.round_seconds.append(seconds)
    (context.out_dir / "count.txt").write_text(f"{options.label} {len(context.result.samples)}\n")


@pytest.hookimpl
def pytest_llmprof_models(config):
    return [
        ModelPlugin(
            name="echo",
            load=lambda model, infer: Echo(model),
            modes=("base",),
            extra=EchoOptions,
            check_extra=check_echo,
            config_dir=HERE / "echo_conf",
        )
    ]


@pytest.hookimpl
def pytest_llmprof_stages(config):
    return [StagePlugin(name="count", options=CountOptions, output=True, check=check_count, run=count)]


@pytest.hookimpl
def pytest_llmprof_datasets(config):
    return [DatasetPlugin(name="blank", load=pages, config_dir=HERE / "echo_conf")]
