"""`--llmprof-strict`: what is missing fails; without it the summary names what is missing."""

from __future__ import annotations

import json

import pytest
from plugin_bench import clean

STAGE = ["--llmprof-stage=direct_inference"]
GATED = """
import pytest
@pytest.mark.llmprof_gate({gate})
def test_pages(llmprof):
    llmprof.run()
"""
NO_GPU = "infer=fast needs an NVIDIA GPU; on cpu use infer=reference"


def strict(bench, how: str) -> list[str]:
    if how == "ini":
        bench.ini(llmprof_strict="true")
    return ["--llmprof-strict"] if how == "option" else []


@pytest.fixture
def folder(bench):
    """Two images with their truth, and the echo model, which says "hello world"."""
    from PIL import Image

    bench.echo()
    (bench.path / "scans").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (40, 30), "white").save(bench.path / "scans" / f"{name}.png")
        (bench.path / "scans" / f"{name}.txt").write_text("hello world")
    bench.test(GATED.format(gate='cer="<=0.05"'))
    dataset = ("dataset=image_folder", "dataset.root=scans", "dataset.limit=null")
    bench.ini(*dataset, "model=echo", "infer.prompt='hello world'")
    return bench.path / "scans"


@pytest.mark.parametrize("workers", [[], ["-n1"]])
def test_the_summary_says_why_a_test_was_skipped(bench, workers):
    bench.test()
    result = (bench.run_apart if workers else bench.run)("infer=fast", "model.device=cpu", args=[*STAGE, *workers])
    result.assert_outcomes(skipped=1)
    assert result.ret == 0
    result.stdout.fnmatch_lines([f"test_it.py::test_pages[[]direct_inference[]]: skipped: {NO_GPU}"])


@pytest.mark.parametrize("how", ["option", "ini"])
def test_strict_fails_what_would_be_skipped(bench, how):
    bench.test("def test_pages(llmprof): llmprof.run()\ndef test_model(llmprof_model): pass\n")
    result = bench.run("infer=fast", "model.device=cpu", args=[*STAGE, *strict(bench, how)])
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(failed=1, errors=1)
    result.stdout.fnmatch_lines([NO_GPU])
    clean(result)
    assert {test["outcome"] for test in bench.run_json()["tests"]} == {"failed"}


def test_strict_leaves_the_users_own_skips(bench):
    bench.test("import pytest\ndef test_pages(llmprof): pytest.skip('not today')\n")
    bench.run(args=[*STAGE, "--llmprof-strict"]).assert_outcomes(skipped=1)


@pytest.mark.parametrize("how", ["no", "option", "ini"])
def test_a_gate_whose_truth_vanished(bench, folder, how):
    for file in folder.glob("*.txt"):
        file.unlink()
    if how == "ini":
        path = bench.path / "pytest.ini"
        path.write_text(path.read_text() + "llmprof_strict = true\n")
    result = bench.run(args=[*STAGE, *(["--llmprof-strict"] if how == "option" else [])])
    text = "cer <=0.05 is not applicable: no page has truth"
    result.stdout.fnmatch_lines([f"test_pages (direct_inference): gate {text}"])
    if how == "no":
        result.assert_outcomes(passed=1)
    else:
        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines([f"llmprof_gate: {text}"])
        assert bench.run_json()["tests"][0]["error"] == f"llmprof_gate: {text}"


def test_a_gate_of_which_some_truth_vanished_is_named(bench, folder):
    (folder / "b.txt").unlink()
    result = bench.run(args=[*STAGE, "--llmprof-strict"])
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        ["test_pages (direct_inference): gate cer is 0, limit <=0.05 (only 1 of 2 pages have truth)"]
    )
    report = (bench.stage_dir(stage="direct_inference") / "report.md").read_text()
    assert "passed: only 1 of 2 pages have truth" in report


def test_nothing_is_named_where_all_gates_hold(bench, folder):
    result = bench.run(args=[*STAGE, "--llmprof-strict"])
    result.assert_outcomes(passed=1)
    assert ": gate" not in result.stdout.str()


@pytest.mark.parametrize(
    ("gate", "reason"),
    [
        ('peak_memory_gib="<=1"', "peak_memory_gib <=1 is not applicable: not known for these pages on cpu"),
        ('kernels_per_token="<=1"', "kernels_per_token <=1 is not measured: no stage of this run measures it"),
    ],
)
@pytest.mark.parametrize("workers", [[], ["-n1"]])
def test_a_gate_without_a_value(bench, gate, reason, workers):
    bench.echo()
    bench.test(GATED.format(gate=gate))
    run = bench.run_apart if workers else bench.run
    for args, outcome in (([], "passed"), (["--llmprof-strict"], "failed")):
        result = run("model=echo", "dataset=blank", args=[*STAGE, *workers, *args])
        result.assert_outcomes(**{outcome: 1})
        result.stdout.fnmatch_lines([f"test_pages (direct_inference): gate {reason}"])
    result.stdout.fnmatch_lines([f"llmprof_gate: {reason}"])


def test_gates_without_a_value_for_one_reason_stand_in_one_line(bench):
    bench.echo()
    bench.test(GATED.format(gate='kernels_per_token="<=1", total_ms=">=1e9", d2h_copies_per_token=">=0"'))
    result = bench.run("model=echo", "dataset=blank", args=[*STAGE, "--llmprof-strict"])
    result.assert_outcomes(failed=1)
    listed = "kernels_per_token <=1, d2h_copies_per_token >=0 are not measured: no stage of this run measures it"
    result.stdout.fnmatch_lines(
        [f"llmprof_gate: {listed}; total_ms is *", f"test_pages (direct_inference): gates {listed}"]
    )


def test_a_gate_that_another_stage_of_the_run_measures(bench):
    """It need not have a value in each stage."""
    bench.test(GATED.format(gate='d2h_copies_per_token=">=0"'))
    result = bench.run(args=["--llmprof-stage=direct_inference,static_analysis", "--llmprof-strict"])
    result.assert_outcomes(failed=2)
    result = bench.run(args=["--llmprof-stage=direct_inference,torch_profiler", "--llmprof-strict", "-rA"])
    result.stdout.fnmatch_lines(["d2h_copies_per_token *>=0*n/a*measured in another stage: torch_profiler"])
    assert "direct_inference): gate" not in result.stdout.str()


def test_a_callables_gate_without_a_value(bench):
    bench.test(GATED.format(gate='ttft_ms="<=1"').replace("run()", "measure(int)"))
    result = bench.run(args=[*STAGE, "--llmprof-strict"])
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["llmprof_gate: ttft_ms <=1 is not applicable: not known for a callable on cpu"]
    )


def test_the_reason_is_in_the_files(bench, folder):
    for file in folder.glob("*.txt"):
        file.unlink()
    bench.run(args=STAGE)
    directory = bench.stage_dir(stage="direct_inference")
    (gate,) = json.loads((directory / "metrics.json").read_text())["gates"]
    assert (gate["outcome"], gate["reason"]) == ("not applicable", "no page has truth")
    assert "not applicable: no page has truth" in (directory / "report.md").read_text()
