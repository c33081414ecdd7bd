"""A plugin (`-p standin_gpus`) for a machine without GPUs: torch seems to have those that STANDIN_GPUS and
CUDA_VISIBLE_DEVICES name, and `model=standin` seems to run on them: it sleeps for each token.

With pynvml.py beside this file, whose GPUs they are.
"""

import os
import time
from pathlib import Path
from types import SimpleNamespace

import pynvml
import torch

from pytest_llmprof.models.base import Capabilities, ModelInfo, ModelPlugin, ParsedOutput, Token

TOKEN_S = 0.002


class Event:
    """A CUDA event by the host's clock."""

    def __init__(self, **_):
        self.at = 0.0

    def record(self, stream):
        self.at = time.perf_counter()

    def elapsed_time(self, end):
        return 1000 * (end.at - self.at)


def visible():
    """The UUIDs of the GPUs that this process may use."""
    all_gpus = [pynvml.nvmlDeviceGetUUID(gpu) for gpu in pynvml._gpus()]
    entries = os.environ.get("CUDA_VISIBLE_DEVICES")
    if entries is None:
        return all_gpus
    return [entry if "-" in entry else all_gpus[int(entry)] for entry in entries.split(",") if entry]


def properties(device):
    name = visible()[torch.device(device).index or 0]
    return SimpleNamespace(name="Stand-in GPU", uuid=name[4:], total_memory=2**36)


for name, stand_in in {
    "is_available": lambda: bool(visible()),
    "is_initialized": lambda: False,
    "device_count": lambda: len(visible()),
    "get_device_properties": properties,
    "current_stream": lambda device=None: None,
    "synchronize": lambda device=None: None,
    "empty_cache": lambda: None,
    "memory_stats_as_nested_dict": lambda device: {},
    "Event": Event,
}.items():
    setattr(torch.cuda, name, stand_in)


torch.version.cuda = "13.0"


class StandIn:
    capabilities = Capabilities(phases=("prefill", "decode"), profiler=False, token_ids=False)

    def __init__(self, settings):
        device = "cpu" if settings.device == "cpu" or not visible() else "cuda:0"
        seen = {"visible": os.environ.get("CUDA_VISIBLE_DEVICES"), "threads": torch.get_num_threads()}
        self.info = ModelInfo(
            "standin", "random", "standin:1", 0, device, "float32", settings.mode, "reference", details=seen
        )

    def generate(self, images, infer, phases):
        for row in range(len(images)):
            with phases.phase("prefill"):
                time.sleep(TOKEN_S)
                yield Token(row, None, "a ", time.perf_counter_ns(), None)
            with phases.phase("decode"):
                for number in range(infer.max_new_tokens - 1):
                    time.sleep(TOKEN_S)
                    last = number + 2 == infer.max_new_tokens
                    yield Token(row, None, "a ", time.perf_counter_ns(), "length" if last else None)

    def prompt(self, infer):
        return infer.prompt

    def prompt_kind(self, infer):
        return "free"

    def parse(self, text, size):
        return ParsedOutput(text)

    def text(self, ids):
        raise AssertionError("it has no token ids")

    def shape_key(self, image, infer):
        return image.size

    def close(self):
        pass


def pytest_llmprof_models(config):
    here = Path(__file__).parent / "conf"
    return [ModelPlugin("standin", load=lambda model, infer: StandIn(model), modes=("base",), config_dir=here)]
