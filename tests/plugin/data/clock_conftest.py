"""A clock for callables that `work` moves on, so that a test measures what durations.json says, in milliseconds."""

import importlib
import itertools
import json
import time
from pathlib import Path

import pytest

from pytest_llmprof.records.metrics import RoundHost


class Clock:
    now = 0

    def perf_counter_ns(self):
        return self.now


CLOCK = Clock()


class QuietHost:
    """A host that nobody else uses."""

    def __init__(self, *_):
        pass

    def begin(self):
        pass

    def end(self):
        return RoundHost(load=0.0, cpu_share=1.0, waited_share=0.0, contended=False)


RUNNER = importlib.import_module("pytest_llmprof.stages.runner")
METER = RUNNER.HostMeter
MODULE = importlib.import_module("pytest_llmprof.stages.callable")


def pytest_configure():
    MODULE.time = CLOCK
    RUNNER.HostMeter = QuietHost


def pytest_unconfigure():
    MODULE.time = time
    RUNNER.HostMeter = METER


def told():
    yield from itertools.cycle(json.loads(Path(__file__).with_name("durations.json").read_text()))


DURATIONS = told()


@pytest.fixture
def work():
    def call():
        CLOCK.now += round(1e6 * next(DURATIONS))

    return call
