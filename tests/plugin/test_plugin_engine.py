"""`infer=auto` in a session: the header, the records and the report say what it became and why; torch stays out."""

from __future__ import annotations

import json
import os

import pytest
from plugin_bench import DATA, PAGES, clean

STAGE = ["--llmprof-stage=direct_inference"]
FAKES = {
    "torch/__init__.py": "raise AssertionError('torch was imported')",
    "torch/version.py": "cuda = '13.0'",
    "triton/__init__.py": "__version__ = '3.6.0'\nraise AssertionError('Triton was imported')",
}
CONFTEST = """
import sysconfig
from pathlib import Path
sysconfig.get_path = lambda *_: str(Path(__file__).parent)
"""
MARKED = """
import pytest
@pytest.mark.parametrize("x", [
    "one", pytest.param("nine", marks=pytest.mark.llmprof(overrides=["infer.batch_size=9"])),
    pytest.param("cpu", marks=pytest.mark.llmprof(overrides=["model.device=cpu"])),
])
def test_it(llmprof_config, x):
    print("ENGINE", x, llmprof_config.infer.engine_shown)
"""


def metrics(bench, test: str = "test_it/test_pages") -> dict:
    return json.loads((bench.stage_dir(test, "direct_inference") / "metrics.json").read_text())


def test_header_report_and_records_say_the_engine_and_why(bench):
    bench.test()
    result = bench.passed("model.device=cpu", args=STAGE)
    result.stdout.fnmatch_lines(["llmprof: stages *; engine reference (auto: model.device=cpu); run directory *"])
    found = metrics(bench)
    assert found["model"]["engine"] == "reference"
    assert (found["fingerprint"]["engine"], found["fingerprint"]["engine_reason"]) == ("reference", "model.device=cpu")
    directory = bench.stage_dir(stage="direct_inference")
    assert "engine reference (auto: model.device=cpu)" in (directory / "report.md").read_text()
    for path in (directory, bench.run_dir):
        assert "engine: reference" in (path / "config.yaml").read_text()


def test_a_named_engine_has_no_reason(bench):
    bench.test()
    result = bench.passed("infer=reference", args=STAGE)
    result.stdout.fnmatch_lines(["llmprof: stages *; engine reference; run directory *"])
    fingerprint = metrics(bench)["fingerprint"]
    assert (fingerprint["engine"], fingerprint["engine_reason"]) == ("reference", None)
    assert "auto" not in (bench.stage_dir(stage="direct_inference") / "report.md").read_text()


def test_a_callable_has_no_engine(bench):
    bench.test("def test_pages(llmprof):\n    llmprof.measure(int)\n")
    bench.passed(args=STAGE)
    fingerprint = metrics(bench)["fingerprint"]
    assert (fingerprint["engine"], fingerprint["engine_reason"]) == (None, None)


@pytest.fixture
def gpu_machine(bench, monkeypatch):
    """Runs of pytest on a machine with a GPU, by its driver, and a torch that must not be imported."""
    for name, text in FAKES.items():
        path = bench.path / "fakes" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (bench.path / "Python.h").touch()
    (bench.path / "conftest.py").write_text(CONFTEST)
    paths = [str(bench.path / "fakes"), str(DATA / "standin_gpus"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("STANDIN_GPUS", "GPU-a")
    monkeypatch.setenv("CC", "sh")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return bench


def test_tests_are_collected_without_torch(gpu_machine):
    gpu_machine.test()
    result = gpu_machine.run_apart("measure.warmup=1", args=[*STAGE, "--collect-only"], fresh=True)
    assert result.ret == 0, result.stderr.str()
    result.stdout.fnmatch_lines(["llmprof: *; engine fast (auto: a GPU, bfloat16, one page at a time); *"])


@pytest.mark.parametrize("workers", [[], ["-n2", "--llmprof-share-gpu"]], ids=["alone", "workers"])
def test_each_test_has_its_own_engine_also_in_workers(gpu_machine, workers):
    gpu_machine.test(MARKED)
    result = gpu_machine.run_apart("measure.warmup=1", args=[*STAGE, "-rA", *workers], fresh=True)
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines_random(
        [
            "ENGINE one fast (auto: a GPU, bfloat16, one page at a time)",
            "ENGINE nine compiled (auto: fast reads up to 8 pages at a time, infer.batch_size=9)",
            "ENGINE cpu reference (auto: model.device=cpu)",
        ]
    )


def test_show_config_on_a_gpu(gpu_machine):
    result = gpu_machine.run_apart("measure.warmup=1", args=["--llmprof-show-config"], fresh=True)
    result.stdout.fnmatch_lines(["  engine: fast  # auto: a GPU, bfloat16, one page at a time"])


def test_a_chosen_engine_that_cannot_run_says_that_auto_chose_it(bench, monkeypatch):
    from pytest_llmprof.models.deepseek_ocr import engines

    monkeypatch.setattr(engines, "choose_engine", lambda *_: ("fast", "a guess"))
    bench.test(PAGES)
    result = bench.run("model.device=cpu", args=[*STAGE, "-rs"])
    result.assert_outcomes(skipped=1)
    clean(result)
    text = "infer.engine=fast (auto: a guess): infer=fast needs an NVIDIA GPU; on cpu use infer=reference"
    result.stdout.fnmatch_lines([f"SKIPPED*{text}"])


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("keys", "engine"), [((), "fast"), (("infer.batch_size=2",), "fast"), (("model.device=cpu",), "reference")]
)
def test_the_default_on_a_gpu(bench, keys, engine):
    """On a machine that has what every engine needs."""
    bench.test()
    bench.passed("measure.warmup=1", *keys, args=STAGE)
    found = metrics(bench)
    assert found["model"]["engine"] == found["fingerprint"]["engine"] == engine
    assert found["model"]["note"] is None
    assert found["model"]["details"]["preprocess"] == ("Pillow" if engine == "reference" else "Triton")
