"""Runs read from directories, saved files and files of pytest-benchmark; the store."""

import json
import multiprocessing
from pathlib import Path

import msgspec
import pytest
from msgspec import structs
from saved_runs import read_runs, saved_run, saved_test, write_run

from pytest_llmprof.compare.saved import saved_run as of_directory
from pytest_llmprof.compare.store import Store
from pytest_llmprof.errors import ArtifactError, ConfigError
from pytest_llmprof.records.environment import Environment, Gpu, Workers
from pytest_llmprof.records.files import write_json
from pytest_llmprof.records.run import RunRecord

STAGE = "test_x/test_pages-0/direct_inference"


def test_a_run_directory(tmp_path):
    run = of_directory(write_run(tmp_path / "run", 2))
    test = run.tests[0]
    assert [test.id for test in run.tests] == ["test_x.py::test_pages[0]", "test_x.py::test_pages[1]"]
    assert (run.machine, test.machine.power_limit_w) == ("NVIDIA H100 80GB HBM3", 700.0)
    assert (test.problem, test.doubts) == (None, [])
    assert test.noise == {"tpot_ms": pytest.approx(0.002 / 0.54)}
    assert list(test.pages) == ["page-0", "page-1", "page-2", "page-3"]
    assert len({page.text for page in test.pages.values()}) == 4
    assert run.configs == {"config-1": {"infer.engine": "fast"}}
    assert run.key != of_directory(write_run(tmp_path / "other", 2, tpot=0.55)).key


def test_a_disturbed_gpu_is_a_doubt(tmp_path):
    directory = write_run(tmp_path / "run")
    gpu = Gpu("H100", None, throttled=True, throttle_reasons=("power cap",), other_processes=2)
    write_json(
        directory / STAGE / "environment.json", Environment(gpu=gpu, gpu_after=gpu, gpu_throttled_ms={"thermal": 900.0})
    )
    assert of_directory(directory).tests[0].doubts == [
        "2 other processes used the GPU",
        "the GPU was throttled (power cap, thermal for 0.900 s)",
    ]


@pytest.mark.parametrize(
    ("device", "workers", "doubts"),
    [
        ("cuda:0", Workers(2, 1), ["2 other processes used the GPU"]),
        ("cuda:0", Workers(3, 2), ["1 other worker of its run used the GPU (--llmprof-share-gpu)"]),
        ("cpu", Workers(3, 2), ["the host was contended by 2 other workers of its run"]),
        ("cpu", Workers(1, None), []),
    ],
)
def test_other_workers_are_a_doubt(tmp_path, device, workers, doubts):
    directory = write_run(tmp_path / "run")
    metrics = json.loads((directory / STAGE / "metrics.json").read_text())
    metrics["fingerprint"]["device"] = device
    write_json(directory / STAGE / "metrics.json", metrics)
    gpu = Gpu("H100", None, other_processes=2) if device != "cpu" else None
    write_json(directory / STAGE / "environment.json", Environment(gpu=gpu, workers=workers))
    assert of_directory(directory).tests[0].doubts == doubts


@pytest.mark.parametrize(("share", "doubts"), [(0.1, []), (0.2, ["the host was contended in 20 % of the rounds"])])
def test_a_host_contended_in_many_rounds_is_a_doubt(tmp_path, share, doubts):
    directory = write_run(tmp_path / "run")
    metrics = json.loads((directory / STAGE / "metrics.json").read_text())
    metrics["figures"]["contended"] = share
    write_json(directory / STAGE / "metrics.json", metrics)
    assert of_directory(directory).tests[0].doubts == doubts


def test_a_test_without_a_result_keeps_its_error(tmp_path):
    directory = write_run(tmp_path / "run", 2)
    (directory / STAGE / "metrics.json").unlink()
    record = json.loads((directory / "run.json").read_text())
    record["tests"][0].update(error="out of\nmemory", outcome="failed")
    write_json(directory / "run.json", record)
    assert [test.problem for test in of_directory(directory).tests] == ["out of memory", None]


def test_a_test_whose_files_are_gone_is_not_one_that_did_not_measure(tmp_path):
    directory = write_run(tmp_path / "run", 2)
    record = RunRecord.read(directory)
    record.tests = [structs.replace(test, kind="pages") for test in record.tests]
    record.tests[1].kind = None
    write_json(directory / "run.json", record)
    for test in record.tests:
        (directory / test.dir / "metrics.json").unlink()
    gone, unmeasured = of_directory(directory).tests
    assert gone.problem == f"its {record.tests[0].dir} has no metrics.json: copy the whole run directory"
    assert unmeasured.problem == "the test passed without measuring"


def test_a_page_that_failed_is_a_problem(tmp_path):
    directory = write_run(tmp_path / "run")
    path = directory / STAGE / "metrics.json"
    metrics = json.loads(path.read_text())
    write_json(path, {**metrics, "status": "error", "errors": [{"page": "page-1", "error": "cannot be read"}]})
    assert of_directory(directory).tests[0].problem == "page page-1: cannot be read"


def test_several_runs_below_a_directory(tmp_path):
    for number in range(3):
        write_run(tmp_path / "runs" / str(number), tpot=0.54 + number / 100)
    (tmp_path / "runs" / "latest").symlink_to("2", target_is_directory=True)
    assert len(read_runs(tmp_path / "runs")) == 3


def benchmark_file(path: Path, **stats) -> Path:
    values = {"median": 0.5, "iqr": 0.01, "rounds": 5, **stats}
    benchmarks = [{"fullname": "test_x.py::test_a", "stats": values, "extra_info": {}}]
    machine = {"cpu": {"brand_raw": "Xeon", "count": 2}}
    path.write_text(json.dumps({"benchmarks": benchmarks, "machine_info": machine, "datetime": "2026-11-28"}))
    return path


def test_a_file_of_pytest_benchmark(tmp_path):
    (run,) = read_runs(benchmark_file(tmp_path / "benchmark.json"))
    assert run.machine == "Xeon, 2 cores"
    assert (run.tests[0].figures, run.tests[0].noise) == ({"round_s": 0.5}, {"round_s": 0.02})
    assert [metric.name for metric in run.metrics] == ["round_s"]


def broken(tmp_path: Path, kind: str) -> Path:
    run = write_run(tmp_path / "run")
    file = tmp_path / "file.json"
    metrics = run / STAGE / "metrics.json"
    if kind == "cut metrics":
        metrics.write_bytes(metrics.read_bytes()[:500])
    elif kind == "newer metrics":
        metrics.write_bytes(metrics.read_bytes().replace(b'"schema": 1', b'"schema": 9', 1))
    elif kind == "cut run":
        (run / "run.json").write_text('{"schema": 1,')
    elif kind == "cut predictions":
        (run / STAGE / "pred" / "predictions.jsonl").write_text('{"page": \n')
    elif kind == "cut kernels":
        (run / STAGE / "kernels.csv").write_text("name,phase,count,busy_ms,total_ms\ngemm,decode,3\n")
    elif kind == "nan":
        return Path(benchmark_file(file, median=float("nan")))
    elif kind == "zero":
        return benchmark_file(file, median=0)
    elif kind == "empty":
        file.write_text("")
        return file
    elif kind == "newer saved":
        file.write_bytes(msgspec.json.encode(saved_run(schema=9)))
        return file
    elif kind == "other json":
        file.write_text("[1, 2]")
        return file
    elif kind == "no run":
        (tmp_path / "nothing").mkdir()
        return tmp_path / "nothing"
    elif kind == "missing":
        return tmp_path / "missing"
    return run


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("cut metrics", "metrics.json is not JSON"),
        ("newer metrics", "metrics.json has schema 9, and this pytest-llmprof reads up to 1"),
        ("cut run", "run.json is not JSON"),
        ("cut predictions", "predictions.jsonl, line 1, is no prediction"),
        ("cut kernels", "kernels.csv is cut off or broken: line 2"),
        ("nan", "is not JSON"),
        ("zero", "test_x.py::test_a has no median above 0"),
        ("empty", "file.json is empty"),
        ("newer saved", "has schema 9"),
        ("other json", "is not a file of this kind"),
        ("no run", "nothing holds no run"),
        ("missing", "there is no run at"),
    ],
)
def test_what_cannot_be_read_is_named_in_one_line(tmp_path, kind, why):
    with pytest.raises(ArtifactError) as found:
        read_runs(broken(tmp_path, kind))
    assert why in str(found.value)
    assert "\n" not in str(found.value)


def test_the_store_keeps_and_lists_runs(tmp_path):
    store = Store(tmp_path / ".llmprof")
    later = saved_run(key="two", started="2026-11-28T12:00:00+00:00")
    store.save(later, "main")
    first = store.save(saved_run(key="one"), "main")
    assert store.save(saved_run(key="one"), "main") == first  # the same run once more
    store.save(saved_run(key="three", machine="A100"), "main")
    assert [run.key for run in store.resolve("main", {"H100"})] == ["one", "two"]
    assert [run.key for run in store.resolve("main", {"A100"})] == ["three"]
    assert [run.key for run in store.resolve(str(first))] == ["one"]
    assert store.runs("main")[0].run.name == "main"
    assert store.names() == ["main"]
    with pytest.raises(ArtifactError, match=r"saved under 'mian' in .* \(did you mean 'main'\?\); saved: main"):
        store.resolve("mian")


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b", "x" * 200])
def test_a_name_that_is_no_file_name_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="cannot be the name of a baseline"):
        Store(tmp_path).save(saved_run(), name)


def test_a_store_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot write the store"):
        Store(tmp_path / "file").save(saved_run(), "main")


def test_a_name_of_which_no_run_is_left(tmp_path):
    """As after a save that was killed, or files removed by hand."""
    store = Store(tmp_path)
    (tmp_path / "main" / "cpu").mkdir(parents=True)
    for read in (store.runs, store.resolve, store.places):
        with pytest.raises(ArtifactError, match=r"no run is saved under 'main' any more: .*main holds none"):
            read("main")
    assert store.runs() == []
    store.save(saved_run(), "main")
    assert len(store.runs("main")) == 1


@pytest.mark.parametrize("closed", ["main", "cpu", "runs"])
def test_a_directory_that_cannot_be_read_is_not_passed_over(tmp_path, monkeypatch, closed):
    store = Store(tmp_path / "store")
    store.save(saved_run(machine="cpu"), "main")
    write_run(tmp_path / "runs" / "1")
    real = Path.iterdir

    def iterdir(path):
        if path.name == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with pytest.raises(ArtifactError, match=f"cannot read .*{closed}: Permission denied"):
        read_runs(tmp_path / "runs") if closed == "runs" else store.runs()


def _save(arguments):
    root, number = arguments
    return Store(root).save(saved_run(saved_test(), key=f"run{number}"), "main").name


def test_two_who_write_at_once_lose_nothing(tmp_path):
    with multiprocessing.get_context("fork").Pool(4) as pool:
        names = pool.map(_save, [(tmp_path / "store", number) for number in range(40)], chunksize=1)
    assert len(set(names)) == 40
    there = {stored.run.key for stored in Store(tmp_path / "store").runs("main")}
    assert there == {f"run{number}" for number in range(40)}
