"""Hooks for other plugins: register models, stages, datasets and metrics of your own.

Paste one of these into a plugin or a conftest.py that pytest loads at its start: the rootdir's, or that of a
directory named on the command line. (The command line is checked before deeper ones are read.)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_llmprof.datasets.base import DatasetPlugin
    from pytest_llmprof.models.base import BoxFormat, ModelPlugin
    from pytest_llmprof.records.catalogue import Metric
    from pytest_llmprof.stages.base import StagePlugin


@pytest.hookspec
def pytest_llmprof_models(config: pytest.Config) -> Iterable[ModelPlugin]:  # type: ignore[empty-body]
    """Return the models you add; `model.name` in a preset chooses one."""


@pytest.hookspec
def pytest_llmprof_box_formats(config: pytest.Config) -> Iterable[BoxFormat]:  # type: ignore[empty-body]
    """Return the formats of boxes you add; `model.family.boxes` names one."""


@pytest.hookspec
def pytest_llmprof_stages(config: pytest.Config) -> Iterable[StagePlugin]:  # type: ignore[empty-body]
    """Return the stages you add; `--llmprof-stage` names them."""


@pytest.hookspec
def pytest_llmprof_datasets(config: pytest.Config) -> Iterable[DatasetPlugin]:  # type: ignore[empty-body]
    """Return the datasets you add; `dataset.name` in a preset chooses one."""


@pytest.hookspec
def pytest_llmprof_metrics(config: pytest.Config) -> Iterable[Metric]:  # type: ignore[empty-body]
    """Return metrics you add: each `Metric` has a `score(page, prediction)`, or a `value(sample)`."""
