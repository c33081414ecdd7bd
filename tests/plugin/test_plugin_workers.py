"""Workers of pytest-xdist: a GPU each, refusal, sharing, threads, groups by model. The GPUs are stand-ins."""

from __future__ import annotations

import json
import os

import pytest
from plugin_bench import DATA, clean

from pytest_llmprof.plugin.workers import split

STAND_IN = DATA / "standin_gpus"
STAGE = "--llmprof-stage=direct_inference"
GPU_MODEL = ("model=standin", "infer.prompt=free")
TWO_TESTS = """
import pytest
@pytest.mark.parametrize("x", "ab")
def test_pages(llmprof, x):
    llmprof.run()
"""
GATED = TWO_TESTS.replace("@pytest", '@pytest.mark.llmprof_gate(total_ms="<=10000", tokens="<=100")\n@pytest', 1)


@pytest.fixture
def gpus(bench, monkeypatch):
    """A bench on a host with two GPUs; every run is in a process of its own."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(STAND_IN), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("STANDIN_GPUS", "GPU-a GPU-b")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    bench.test(TWO_TESTS)
    return bench


def run(bench, *args: str, overrides=GPU_MODEL, stage=(STAGE,)):
    return bench.run_apart(*overrides, args=["-p", "standin_gpus", *stage, *args])


def found(bench, name: str, file: str = "environment.json"):
    """A file of test_pages[name]."""
    path = bench.run_dir / "test_it" / f"test_pages-{name}" / "direct_inference" / file
    return json.loads(path.read_text())


def refused(bench, *args: str, overrides=GPU_MODEL, stage=(STAGE,)) -> str:
    return bench.usage_error(*overrides, args=["-p", "standin_gpus", *stage, *args], apart=True)


def test_a_gpu_each_and_one_record_as_without_workers(gpus):
    result = run(gpus, "-n2")
    result.assert_outcomes(passed=2)
    clean(result)
    places = [found(gpus, name) for name in "ab"]
    assert {place["gpu"]["uuid"] for place in places} == {"GPU-a", "GPU-b"}
    assert [place["workers"] for place in places] == [{"count": 2, "on_gpu": 1}] * 2
    seen = [found(gpus, name, "metrics.json")["model"]["details"]["visible"] for name in "ab"]
    assert {"GPU-a", "GPU-b"} == set(seen)
    assert "shared" not in result.stdout.str()
    ids = [f"test_it.py::test_pages[{name}-direct_inference]" for name in "ab"]
    tests = gpus.run_json()["tests"]
    assert sorted(test["id"] for test in tests) == ids
    assert {test["outcome"] for test in tests} == {"passed"}
    assert [found(gpus, name, "metrics.json")["id"] for name in "ab"] == ids
    merged = json.loads((gpus.run_dir / "benchmark.json").read_text())["benchmarks"]
    assert sorted(one["fullname"] for one in merged) == ids
    assert "@llmprof" not in result.stdout.str()


@pytest.mark.parametrize(
    ("visible", "seen"),
    [("1,0", {"0", "1"}), ("GPU-b,GPU-a", {"GPU-a", "GPU-b"}), (None, {"MIG-c", "MIG-d"})],
)
def test_the_callers_own_list_and_mig_instances(gpus, monkeypatch, visible, seen):
    if visible is None:
        monkeypatch.setenv("STANDIN_GPUS", "GPU-a:MIG-c+MIG-d")
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    run(gpus, "-n2").assert_outcomes(passed=2)
    assert {found(gpus, name, "metrics.json")["model"]["details"]["visible"] for name in "ab"} == seen


def test_more_workers_than_gpus_are_refused(gpus, monkeypatch):
    assert refused(gpus, "-n3") == (
        "3 workers, but 2 GPUs (the driver (NVML): GPU-a, GPU-b): use -n 2, or --llmprof-share-gpu, which marks their "
        "figures as shared"
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert refused(gpus, "-n2").startswith("2 workers, but 1 GPU (CUDA_VISIBLE_DEVICES: 1): use -n 1, or --llmprof-sh")
    assert "2 workers, but 1 GPU" in refused(gpus, "--tx=2*popen", "--dist=load")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert refused(gpus, "-n2").endswith(", but CUDA_VISIBLE_DEVICES= leaves no GPU to 2 workers")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("STANDIN_GPUS", "")
    assert "no GPU is found by the driver (NVML) or nvidia-smi" in refused(gpus, "-n2")


def test_a_gpu_by_number_is_refused_with_workers(gpus):
    text = refused(gpus, "-n2", overrides=(*GPU_MODEL, "model.device=cuda:1"))
    assert text.startswith("model.device=cuda:1, set ")
    assert text.endswith(": a worker sees its own GPU alone, so write model.device=cuda")


@pytest.mark.parametrize("how", ["option", "ini"])
def test_shared_on_request(gpus, monkeypatch, how):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    gpus.test(GATED)
    if how == "ini":
        gpus.ini(llmprof_share_gpu="true")
    result = run(gpus, "-n2", *(["--llmprof-share-gpu"] if how == "option" else []))
    result.assert_outcomes(passed=2)
    for name in "ab":
        assert found(gpus, name)["workers"] == {"count": 2, "on_gpu": 2}
        gates = found(gpus, name, "metrics.json")["gates"]
        assert {gate["name"]: gate["outcome"] for gate in gates} == {"total_ms": "not measured", "tokens": "passed"}
    why = "1 other worker of its run used the GPU (--llmprof-share-gpu)"
    result.stdout.fnmatch_lines([f"test_pages*and 1 more: gate total_ms <=10000 is not measured: {why}"])
    result.stdout.fnmatch_lines(["test_pages*and 1 more: The GPU was shared with 1 other worker of this run: *"])
    if how == "option":
        assert run(gpus, "-n2", "--llmprof-share-gpu", "--llmprof-strict").ret == pytest.ExitCode.TESTS_FAILED


def test_auto_is_a_worker_for_each_gpu(gpus, monkeypatch):
    result = run(gpus, "-nauto")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*created: 2/2 workers*"])
    monkeypatch.setenv("PYTEST_XDIST_AUTO_NUM_WORKERS", "1")
    run(gpus, "-nauto").stdout.fnmatch_lines(["*created: 1/1 worker*"])


def test_auto_without_a_gpu_model_is_xdists_own(gpus):
    (gpus.path / "conftest.py").write_text("def pytest_xdist_auto_num_workers(): return 1\n")
    result = run(gpus, "-nauto", overrides=(*GPU_MODEL, "model.device=cpu"))
    result.stdout.fnmatch_lines(["*created: 1/1 worker*"])


def test_a_session_that_does_not_configure_us(gpus, monkeypatch):
    """The workers see that tests of ours are there, and take their GPUs themselves."""
    gpus.ini(tiny=False)
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p standin_gpus")
    own = "import os\ndef test_it(llmprof_stage): assert os.environ['CUDA_VISIBLE_DEVICES'] in ('GPU-a', 'GPU-b')\n"
    gpus.test(own)
    gpus.run_apart(args=["-n2"]).assert_outcomes(passed=1)
    result = gpus.run_apart(args=["-n3"])
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "ERROR: 3 workers, but 2 GPUs (the driver (NVML): GPU-a, GPU-b): use -n 2, or" in result.stderr.str()
    gpus.run_apart(args=["-n3", "--llmprof-share-gpu"]).assert_outcomes(passed=1)
    gpus.test("import os\ndef test_it(): assert 'CUDA_VISIBLE_DEVICES' not in os.environ\n")
    gpus.run_apart(args=["-n3"]).assert_outcomes(passed=1)


def test_a_model_on_the_cpu_has_its_share_of_threads_and_is_marked(bench, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    bench.test(TWO_TESTS)
    result = bench.run_apart(args=["-n2", STAGE])
    result.assert_outcomes(passed=2)
    for name in "ab":
        host = found(bench, name)["host"]
        assert host["torch_threads"] == max(1, host["affinity"] // 2)
        assert found(bench, name)["workers"]["count"] == 2
    result.stdout.fnmatch_lines(["test_pages*and 1 more: It ran beside 1 other worker of this run on the same host: *"])


GROUPS = """
import os, pytest
HERE = os.environ.get("PYTEST_XDIST_WORKER")
@pytest.mark.parametrize("x", range(4))
@pytest.mark.parametrize(
    "model", [pytest.param(name, marks=pytest.mark.llmprof(overrides=[f"model.seed={name}"])) for name in (1, 2)]
)
def test_it(llmprof_output, llmprof_artifacts, llmprof_stage, model, x):
    directory = llmprof_artifacts.out_dir(llmprof_stage)
    directory.mkdir(parents=True)
    (directory / "worker").write_text(HERE)
@pytest.mark.xdist_group("mine")
@pytest.mark.parametrize("x", range(2))
def test_marked(llmprof_output, llmprof_artifacts, llmprof_stage, x):
    directory = llmprof_artifacts.out_dir(llmprof_stage)
    directory.mkdir(parents=True)
    (directory / "worker").write_text(HERE)
def test_plain(): pass
"""


def workers_of(bench, *names: str) -> set[str]:
    return {(bench.run_dir / "test_it" / name / "direct_inference" / "worker").read_text() for name in names}


def test_tests_with_one_model_stay_in_one_worker(bench):
    bench.test(GROUPS)
    result = bench.run_apart(args=["-n2", STAGE, "-v", "--junitxml=junit.xml"])
    result.assert_outcomes(passed=11)
    for model in (1, 2):
        assert len(workers_of(bench, *(f"test_it-{model}-{x}" for x in range(4)))) == 1
    assert len(workers_of(bench, "test_marked-0", "test_marked-1")) == 1
    ids = {test["id"] for test in bench.run_json()["tests"]}
    assert len(ids) == 10
    assert not any("@" in name for name in ids)
    assert "@" not in (bench.path / "junit.xml").read_text().replace("@mine", "")
    assert "@llmprof" not in result.stdout.str()


def test_a_choice_of_the_user_stays(bench):
    bench.test(GROUPS)
    result = bench.run_apart(args=["-n2", STAGE, "--dist=load"])
    result.assert_outcomes(passed=11)
    models = [len(workers_of(bench, *(f"test_it-{model}-{x}" for x in range(4)))) for model in (1, 2)]
    assert max(models) == 2  # each worker begins with every other test, or nearly


def test_an_xdist_without_groups_says_so(gpus):
    (gpus.path / "conftest.py").write_text(
        "import importlib.util\n"
        "found = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *more: None if name.endswith('.loadgroup') else found(name, *more)\n"
    )
    result = run(gpus, "-n2")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["WARNING: tests with one model may run in several workers: this pytest-xdist is *"])


def test_last_failed_knows_a_test_of_a_group(bench):
    (bench.path / "pytest.ini").write_text("[pytest]\n")
    bench.test("import os\ndef test_bad(llmprof_stage): assert 0\ndef test_good(llmprof_stage): pass\n")
    bench.run_apart(args=["-n2", STAGE]).assert_outcomes(failed=1, passed=1)
    for args in (["-n2"], []):
        bench.run_apart(args=[*args, STAGE, "--lf"]).assert_outcomes(failed=1)


DEADLY = """
import os, pytest
@pytest.mark.parametrize("x", range(4))
def test_it(llmprof, x):
    llmprof.run()
    open("runs", "a").write(f"{x}\\n")
    if x == 1:
        os.kill(os.getpid(), 9)
"""


def test_a_killed_worker_costs_one_test_which_is_not_run_again(gpus):
    gpus.test(DEADLY)
    result = run(gpus, "-n2")
    result.assert_outcomes(failed=1, passed=3)
    outcomes = {test["id"]: (test["outcome"], test["error"]) for test in gpus.run_json()["tests"]}
    killed = "test_it.py::test_it[1-direct_inference]"
    assert outcomes.pop(killed) == ("failed", "worker crashed")
    assert set(outcomes.values()) == {("passed", None)}
    assert len(outcomes) == 3
    assert sorted((gpus.path / "runs").read_text().split()) == ["0", "1", "2", "3"]
    stages = gpus.run_dir / "test_it"
    uuids = [
        json.loads((stages / f"test_it-{x}" / "direct_inference" / "environment.json").read_text())["gpu"]["uuid"]
        for x in range(4)
    ]
    assert uuids[0] == uuids[1]  # one group
    assert set(uuids) == {"GPU-a", "GPU-b"}


@pytest.mark.parametrize(
    ("keys", "least", "parts"),
    [
        ("aaaa", 2, ["aa", "aa"]),
        ("aaaa", 1, ["aaaa"]),
        ("aaaa", 9, ["a", "a", "a", "a"]),
        ("aaabbbbb", 3, ["aaa", "bb", "bbb"]),
        ("abab", 2, ["aa", "bb"]),
        ("aaabb", 4, ["a", "aa", "b", "b"]),
        ("aab", 2, ["aa", "b"]),
        ("a", 2, ["a"]),
        ("", 2, []),
        ("aaa", -1, ["aaa"]),
    ],
)
def test_groups_are_cut_until_there_is_one_for_each_worker(keys, least, parts):
    assert ["".join(part) for part in split(list(keys), str, least)] == parts
