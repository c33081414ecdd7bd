"""What `llmprof doctor` finds through pytest: the project's configuration, the model, the pages, each stage."""

from __future__ import annotations

import pytest

from pytest_llmprof.records.checks import SCHEMA, Check, MachineReport
from pytest_llmprof.records.files import decode_record

OWN_STAGE = """
from pytest_llmprof.records.checks import ok, problem, warning
from pytest_llmprof.stages.base import StagePlugin

def checks(context):
    yield ok("First", f"{context.settings.stage} on {context.device}")
    BODY

def pytest_llmprof_stages(config):
    return [StagePlugin("own", run=lambda context: None, checks=checks)]
"""


@pytest.fixture(scope="module", autouse=True)
def warm_checks() -> None:
    """As `warm` in conftest.py: what checks import."""

    import pytest_llmprof.models.deepseek_ocr.checks
    import pytest_llmprof.run.doctor
    import pytest_llmprof.stages.torch_profiler.checks  # noqa: F401


@pytest.fixture
def look(bench, monkeypatch):
    """Looks in this process, without the slow tools; gives the report."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def run(*overrides: str, stages: str | None = None) -> MachineReport:
        path = bench.path / "report.json"
        stage = [] if stages is None else [f"--llmprof-stage={stages}"]
        result = bench.run("pipeline.nsys.enable=false", *overrides, args=[f"--llmprof-doctor={path}", *stage])
        assert (result.ret, result.stdout.str()) == (0, "")
        assert not (bench.path / "llmprof-runs").exists()
        return decode_record(path.read_bytes(), MachineReport, SCHEMA, path)

    return run


def named(report: MachineReport, name: str, stage: str | None = None) -> Check:
    return next(check for check in report.checks if (check.name, check.stage) == (name, stage))


def test_the_projects_options_and_conftest_files_count(bench, look):
    bench.ini("dataset=documents", tiny=False, llmprof_stage="own")
    source = OWN_STAGE.replace("BODY", "yield warning('Second', 'half', 'add the rest')")
    (bench.path / "conftest.py").write_text(source)
    report = look()
    assert (report.able, report.stages) == (True, ["own"])
    assert named(report, "First", "own").found == "own on cpu"
    assert named(report, "Second", "own") == Check("Second", "warning", "half", "add the rest", "own")
    assert named(report, "Pages").found == "6 pages of documents"
    assert named(report, "Tool", "nsys") == Check("Tool", "not checked", "pipeline.nsys.enable=false", None, "nsys")


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("yield problem('Second', 'no ink', 'buy some')", "no ink"),
        ("raise ValueError('a\\nb')", "its check failed: ValueError: a b"),
        ("from pytest_llmprof.errors import StageError; raise StageError('dry')", "dry"),
    ],
)
def test_checks_of_an_own_stage_that_fail(bench, look, body, found):
    """What a check finds or raises stops its own stage alone, and the others are looked at."""
    (bench.path / "conftest.py").write_text(OWN_STAGE.replace("BODY", body))
    report = look(stages="own,torch_profiler")
    assert not report.able
    assert [check.found for check in report.problems("own")] == [found]
    assert report.problems("torch_profiler") == []
    assert named(report, "First", "own").status == "ok"
    assert named(report, "Profiler", "torch_profiler").status == "ok"


@pytest.mark.parametrize(
    ("overrides", "name", "found"),
    [
        (["model.device=cuda"], "Device", "torch sees no CUDA GPU"),
        (["infer=fast", "infer.batch_size=9"], "Engine", "infer=fast"),
        (["model=deepseek_ocr", "model.path=empty"], "Model", "config.json is missing"),
        (["model=deepseek_ocr", "model.path=no/such"], "Model", "not in the cache"),
    ],
)
def test_what_stops_every_stage(bench, look, monkeypatch, overrides, name, found):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(bench.path / "cache"))
    (bench.path / "empty").mkdir()
    (bench.path / "empty" / "readme").write_text("")
    report = look(*overrides)
    assert not report.able
    assert named(report, name).status == "problem"
    assert found in named(report, name).found
    assert all(report.problems(stage) for stage in (*report.stages, *report.other_stages))
