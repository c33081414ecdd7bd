"""A composer over the packaged tree, with temporary directories for everything else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pytest_llmprof.config.compose import Composer, ConfigSources
from pytest_llmprof.config.registry import Registry
from pytest_llmprof.config.schema import Settings
from pytest_llmprof.datasets import builtin
from pytest_llmprof.errors import ConfigError
from pytest_llmprof.measure.visible_gpus import VisibleGpus
from pytest_llmprof.models import engine_choice
from pytest_llmprof.models.deepseek_ocr import plugin
from pytest_llmprof.stages import packaged_stages

MARKER = "tests/test_x.py:12"


@dataclass
class Bench:
    """Makes composers and asks them; `user` is a configuration tree that is used where it holds a file."""

    start: Path
    root: Path
    user: Path

    registry: Registry

    def write(self, name: str, text: str) -> Path:
        """Write a file of the user's configuration tree."""
        path = self.user / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def composer(self, *cli: str, ini: tuple[str, ...] = (), **sources: Any) -> Composer:
        """A composer with these overrides."""
        if "config_dir" not in sources and self.user.exists():
            sources["config_dir"] = self.user
        return Composer(
            ConfigSources(
                invocation_dir=self.start, rootdir=self.root, ini_overrides=ini, cli_overrides=cli, **sources
            ),
            self.registry,
        )

    def settings(
        self, *cli: str, ini: tuple[str, ...] = (), mark: tuple[str, ...] = (), **sources: Any
    ) -> Settings:
        """A test's settings under these overrides."""
        composer = self.composer(*cli, ini=ini, **sources)
        return composer.for_test(mark, MARKER, "mod/test_a", "torch_profiler")

    def error(self, *cli: str, ini: tuple[str, ...] = (), mark: tuple[str, ...] = (), **sources: Any) -> str:
        """The one-line error that these overrides give."""
        with pytest.raises(ConfigError) as caught:
            self.settings(*cli, ini=ini, mark=mark, **sources)
        text = str(caught.value)
        assert "\n" not in text
        assert "Traceback" not in text
        return text


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A bench in an empty place, on a machine without a GPU."""
    monkeypatch.setattr(engine_choice, "_gpus", lambda visible: VisibleGpus((), "nobody"))
    start, root = tmp_path / "start", tmp_path / "root"
    start.mkdir()
    root.mkdir()
    registry = Registry.of([plugin()], packaged_stages(), builtin())
    return Bench(start, root, tmp_path / "user", registry)


@pytest.fixture
def output() -> Callable[[Settings], Any]:
    """The output block of torch_profiler."""
    return lambda settings: settings.pipeline["torch_profiler"].output
