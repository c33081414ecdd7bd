"""A third party's metrics, as one would write them in a conftest beside the echo's plugin.

The stage `weigh` has two, and a section in the report; the model and the hook have one each.
"""

from dataclasses import replace

import echo_plugin
from msgspec import Struct

from pytest_llmprof.records.catalogue import Metric
from pytest_llmprof.report.sections import Finding, Section
from pytest_llmprof.stages.base import StagePlugin
from pytest_llmprof.stages.runner import clean_rounds
from pytest_llmprof.text.markdown import table
from pytest_llmprof.text.numbers import number

pytest_llmprof_datasets = echo_plugin.pytest_llmprof_datasets

WEIGHT = Metric(
    "weight_g", "g", "Weight of the answers", "lower", shown=("report", "terminal", "gate"), heading="grams", digits=2
)
LONGEST = Metric(
    "longest_ms",
    "ms",
    "Longest page",
    "lower",
    "max",
    ("report", "terminal", "gate"),
    value=lambda sample: sample.total_ms,
)


class Scales(Struct):
    """The stage's block of metrics.json."""

    pages: list[str]


def weigh(context):
    clean_rounds(context)
    context.result.figures["weight_g"] = 1.25
    context.result.blocks["scales"] = Scales([sample.page for sample in context.result.samples])


def section(records):
    scales = records.block("scales", Scales)
    if scales is None:
        return None
    weight = number(records.metrics.figures["weight_g"])
    return Section(
        "Scales",
        [table(["Page", "g"], [[page, weight] for page in scales.pages])],
        findings=[Finding(1.0, "The answers are heavy.")],
        warnings=["the scales were not level"],
    )


def count_words(page, prediction):
    if prediction.text_raw.startswith("uncountable"):
        raise ValueError("no luck")
    return len(prediction.text_raw.split())


def count_greetings(page, prediction):
    return prediction.text_raw.count("hello")


def pytest_llmprof_stages(config):
    return [StagePlugin("weigh", output=True, metrics=(WEIGHT, LONGEST), report=section, run=weigh)]


def pytest_llmprof_models(config):
    (echo,) = echo_plugin.pytest_llmprof_models(config)
    words = Metric(
        "words", label="Words a page", reduce="mean", shown=("report", "terminal", "gate"), score=count_words
    )
    return [replace(echo, metrics=(words,))]


def pytest_llmprof_metrics(config):
    return [
        Metric(
            "greetings",
            label="Greetings",
            better="higher",
            reduce="sum",
            shown=("quality", "terminal", "gate"),
            digits=0,
            section="quality",
            score=count_greetings,
        )
    ]
