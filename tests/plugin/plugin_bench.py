"""A directory to run pytest in, with the plugin's real options, small enough for two CPU cores."""

from __future__ import annotations

import gc
import json
import pickle
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from forks import ForkServer

DATA = Path(__file__).parent / "data"
TINY = ("dataset.limit=1", "infer.max_new_tokens=4", "measure.rounds=1", "measure.warmup=0")
"""One page, four tokens, one round: a run of the real model in half a second."""

PAGES = """
def test_pages(llmprof):
    llmprof.run()
"""
OUTPUT = """
def test_output(llmprof_output, llmprof_stage):
    import json
    from pathlib import Path
    from dataclasses import asdict
    found = asdict(llmprof_output)
    Path(f"{llmprof_stage}.json").write_text(json.dumps(found, default=str))
"""
"""Writes what `llmprof_output` holds; loads no model."""


@cache
def warm_up() -> None:
    """Import here what runs need: pytester forgets what an inner run imported, and torch cannot start twice.

    A collection of garbage does not walk it (`pytest_collection_finish` of all tests). pytest-benchmark's library asks
    the processor what it is in a process of its own, for each run: here that is done once.
    """
    import cpuinfo
    import markdown_it  # noqa: F401
    import rapidfuzz  # noqa: F401
    import xdist.plugin  # noqa: F401
    from PIL import Image

    from pytest_llmprof.config.compose import Composer, ConfigSources
    from pytest_llmprof.config.registry import Registry
    from pytest_llmprof.config.schema import InferSettings, ModelSettings
    from pytest_llmprof.datasets import builtin
    from pytest_llmprof.measure import environment  # noqa: F401
    from pytest_llmprof.measure.phases import PhaseRecorder
    from pytest_llmprof.models.deepseek_ocr import plugin
    from pytest_llmprof.outputs import gallery  # noqa: F401
    from pytest_llmprof.plugin import benchmark_sink  # noqa: F401
    from pytest_llmprof.report import page, run_summary, write_report  # noqa: F401
    from pytest_llmprof.run import collisions, model_cache, session  # noqa: F401
    from pytest_llmprof.run.runner import Runner  # noqa: F401
    from pytest_llmprof.stages import callable as measured_callable  # noqa: F401
    from pytest_llmprof.stages import packaged_stages
    from pytest_llmprof.stages.runner import PagesWorkload  # noqa: F401
    from pytest_llmprof.stages.torch_profiler import summary  # noqa: F401
    from pytest_llmprof.stages.torch_profiler.kineto import read_trace  # noqa: F401

    cpuinfo.get_cpu_info = cache(cpuinfo.get_cpu_info)
    _remember_compositions()
    Composer(ConfigSources(Path(), Path()), Registry.of([plugin()], packaged_stages(), builtin())).show()
    infer = InferSettings(max_new_tokens=2, engine="reference")
    model = plugin().load(ModelSettings(mode="tiny", weights="random", size="tiny"), infer)
    list(model.generate([Image.new("RGB", (64, 64))], infer, PhaseRecorder("cpu")))
    model.close()
    gc.freeze()


def _remember_compositions() -> None:
    """Compose the same presets of the same files once: most runs here have the packaged ones (tests/config composes
    anew each time)."""
    from pytest_llmprof.config import hydra_compose

    compose = hydra_compose.compose
    known: dict[Any, bytes] = {}

    def remembered(directories: Sequence[Path], *given: Any, **kinds: Any) -> Any:
        files = [path for directory in directories for path in sorted(directory.rglob("*")) if path.is_file()]
        key = repr((directories, given, kinds, [(path, path.read_bytes()) for path in files]))
        if key not in known:
            known[key] = pickle.dumps(compose(directories, *given, **kinds))
        return pickle.loads(known[key])

    hydra_compose.compose = remembered


class Bench:
    """A directory with tests, an ini file and the plugin's options."""

    def __init__(self, pytester: pytest.Pytester, forks: ForkServer | None = None) -> None:
        self.pytester = pytester
        self._forks = forks
        self.path = pytester.path
        self.config_dir = self.path / "conf"
        self.ini()

    def ini(self, *overrides: str, tiny: bool = True, **lines: str | Sequence[str]) -> None:
        """Write pytest.ini, with the tiny run's overrides before *overrides*."""
        text = ["[pytest]", "addopts = -p no:cacheprovider --strict-markers --strict-config"]
        values: dict[str, Sequence[str]] = {"llmprof_override": [*(TINY if tiny else ()), *overrides]}
        for name, value in lines.items():
            values[name] = [value] if isinstance(value, str) else value
        for name, value in values.items():
            text += [f"{name} =", *(f"    {line}" for line in value)] if value else []
        (self.path / "pytest.ini").write_text("\n".join(text) + "\n", encoding="utf-8")

    def test(self, source: str = PAGES, name: str = "test_it.py") -> Path:
        """Write a test module."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
        return path

    def user(self, name: str, text: str) -> Path:
        """Write a file of the user's configuration tree."""
        path = self.config_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def echo(self) -> None:
        """Add the third party's plugin as the directory's conftest, with its configuration."""
        shutil.copy(DATA / "echo_plugin.py", self.path / "conftest.py")
        shutil.copytree(DATA / "echo_conf", self.path / "echo_conf")

    def own_metrics(self, *replaced: str) -> None:
        """Add the echo, and a conftest with metrics of its own; *replaced* are a text in it and the one for it."""
        shutil.copy(DATA / "echo_plugin.py", self.path / "echo_plugin.py")
        shutil.copytree(DATA / "echo_conf", self.path / "echo_conf")
        text = (DATA / "metrics_plugin.py").read_text(encoding="utf-8")
        if replaced:
            assert replaced[0] in text
            text = text.replace(*replaced)
        (self.path / "conftest.py").write_text(text, encoding="utf-8")

    def args(self, overrides: Sequence[str], args: Sequence[str]) -> list[str]:
        given = [word for override in overrides for word in ("--llmprof-override", override)]
        if self.config_dir.exists():
            given += ["--llmprof-config-dir", str(self.config_dir)]
        return [*given, *args]

    def run(self, *overrides: str, args: Sequence[str] = ()) -> pytest.RunResult:
        """Run pytest in this process; *overrides* are given on the command line."""
        return self.pytester.runpytest_inprocess(*self.args(overrides, args), no_reraise_ctrlc=True)

    def run_apart(self, *overrides: str, args: Sequence[str] = (), fresh: bool = False) -> pytest.RunResult:
        """Run pytest in a process of its own; *fresh* where it may not have imported anything before."""
        with pytest.MonkeyPatch.context() as patch:
            if self._forks and not fresh:
                patch.setattr(subprocess, "Popen", self._forks.popen)
            return self.pytester.runpytest_subprocess(*self.args(overrides, args))

    def passed(self, *overrides: str, args: Sequence[str] = (), count: int = 1) -> pytest.RunResult:
        """Run it in this process and see *count* tests pass and nothing else."""
        result = self.run(*overrides, args=args)
        result.assert_outcomes(passed=count)
        assert result.ret == 0
        return result

    def usage_error(self, *overrides: str, args: Sequence[str] = (), apart: bool = False) -> str:
        """Run it and give its usage error: one line, exit code 4, no traceback, no run directory."""
        result = (self.run_apart if apart else self.run)(*overrides, args=args)
        assert result.ret == pytest.ExitCode.USAGE_ERROR, result.stdout.str() + result.stderr.str()
        clean(result)
        lines = [line for line in result.errlines if line.strip()]
        assert len(lines) == 1, lines
        assert lines[0].startswith("ERROR: ")
        assert not (self.path / "llmprof-runs").exists()
        return lines[0].removeprefix("ERROR: ")

    @property
    def run_dir(self) -> Path:
        """The run directory of the one run that was made here."""
        runs = [path for path in (self.path / "llmprof-runs").iterdir() if path.is_dir() and not path.is_symlink()]
        assert len(runs) == 1, runs
        return runs[0]

    def stage_dir(self, test: str = "test_it/test_pages", stage: str = "torch_profiler") -> Path:
        """A test's stage directory in that run."""
        return self.run_dir / test / stage

    def run_json(self) -> dict[str, Any]:
        """run.json of that run."""
        return json.loads((self.run_dir / "run.json").read_text(encoding="utf-8"))

    def output(self, stage: str = "torch_profiler") -> dict[str, Any]:
        """What OUTPUT wrote."""
        return json.loads((self.path / f"{stage}.json").read_text(encoding="utf-8"))

    def start(self, *overrides: str, args: Sequence[str] = ()) -> subprocess.Popen[str]:
        """Start pytest in a process (and process group) of its own."""
        command = [sys.executable, "-m", "pytest", *self.args(overrides, args)]
        popen = self._forks.popen if self._forks else subprocess.Popen
        return popen(
            command,
            cwd=self.path,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def clean(result: pytest.RunResult) -> None:
    """Nothing that a user should not see."""
    text = result.stdout.str() + result.stderr.str()
    assert "INTERNALERROR" not in text
    assert "Traceback" not in text


def files(directory: Path) -> set[str]:
    """All files below *directory*, as relative POSIX paths; nothing may be half-written."""
    found = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
    assert not [name for name in found if "/.tmp-" in f"/{name}"]
    return found


def shell_words(error: str) -> list[str]:
    """The options that an error suggests, as a shell reads them."""
    options = re.search(r"(--llmprof-override .*)$", error)
    assert options, error
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {options[1]}"], capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]


def wait_for(path: Path, seconds: float = 180.0) -> None:
    """Wait until *path* is there."""
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} did not come"
        time.sleep(0.05)
