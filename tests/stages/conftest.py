"""A stage that runs under a tool, with a stand-in for the tool and for the card."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_llmprof.config.compose import Composer, ConfigSources
from pytest_llmprof.config.registry import Registry
from pytest_llmprof.datasets import builtin
from pytest_llmprof.models.deepseek_ocr import plugin
from pytest_llmprof.stages import packaged_stages
from pytest_llmprof.stages.base import ToolContext
from pytest_llmprof.stages.child import Child
from pytest_llmprof.stages.ncu import stage as ncu
from pytest_llmprof.stages.nsys import stage as nsys

HERE = Path(__file__).parent
STAGES = {"nsys": nsys.plugin("torch_profiler"), "ncu": ncu.plugin("torch_profiler")}


def install(name: str, directory: Path) -> Path:
    """Put the stand-in for the tool *name* into *directory*."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    path.write_text(f"#!{sys.executable}\n" + (HERE / "fake_tool.py").read_text(encoding="utf-8"), encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ToolContext]:
    """Run a stage on a card that isn't there; gives its context."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")

    def run(name: str, mode: str, *overrides: str, device: str = "cuda:0", report: Path | None = None) -> ToolContext:
        install(name, tmp_path / "bin")
        monkeypatch.setenv("FAKE", mode)
        monkeypatch.setenv("FAKE_PID", str(tmp_path / "pid"))
        monkeypatch.setenv("FAKE_REPORT", str(report))
        registry = Registry.of([plugin()], packaged_stages(), builtin())
        composer = Composer(ConfigSources(tmp_path, tmp_path, cli_overrides=overrides), registry)
        settings = composer.for_test((), "", "mod/test_a", name)
        out_dir = tmp_path / "mod" / "test_a" / name
        shutil.rmtree(out_dir, ignore_errors=True)
        out_dir.mkdir(parents=True)
        run_dir = tmp_path / "run"
        shutil.rmtree(run_dir, ignore_errors=True)
        child = Child(
            command=[sys.executable, "-m", "pytest", f"--llmprof-run-dir={run_dir}"],
            cwd=tmp_path,
            run_dir=run_dir,
            out_dir=out_dir,
            timeout_s=settings.current.options.timeout_s,
            key=f"pipeline.{name}.timeout_s",
            progress=lambda *_: None,
        )
        context = ToolContext(
            settings=settings,
            out_dir=out_dir,
            device=device,
            child=child,
            other_stages=[(other, out_dir.parent / other) for other in ("torch_profiler", "nsys")],
            progress=lambda *_: None,
            block=STAGES[name].block(),
            figures={},
        )
        STAGES[name].run(context)
        return context

    return run
