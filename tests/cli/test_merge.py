"""`llmprof merge`: shards become one run, or one line says why not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace
from saved_runs import H100, write_run

from pytest_llmprof.cli import main
from pytest_llmprof.cli.merge import merge
from pytest_llmprof.compare.compare import compare
from pytest_llmprof.compare.saved import by_machine, read_run, saved_run
from pytest_llmprof.compare.store import Store
from pytest_llmprof.errors import ArtifactError
from pytest_llmprof.records.files import decode_record, read_bytes, write_json
from pytest_llmprof.records.run import SCHEMA, Process, RunRecord, Shard

A100 = "NVIDIA A100-SXM4-80GB"


def shards(folder: Path, count: int = 3, **changes) -> list[Path]:
    """Run directories of the shards of a suite with two tests a shard."""
    return [
        write_run(
            folder / f"s{index}",
            [2 * index, 2 * index + 1],
            shard=Shard(index, count, "split-1"),
            session=f"session-{index}",
            started=f"2026-11-28T1{index}:00:00+00:00",
            argv=["benchmarks", "--llmprof-shard", f"{index}/{count}", f"--llmprof-run-dir=s{index}", "-q"],
            versions={"torch": "2.9"},
            **changes,
        )
        for index in range(1, count + 1)
    ]


def change(run: Path, **changes) -> None:
    """Change run.json."""
    write_json(run / "run.json", replace(read(run), **changes))


def read(run: Path) -> RunRecord:
    return decode_record(read_bytes(run / "run.json"), RunRecord, SCHEMA, run)


def files(run: Path) -> dict[str, bytes]:
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def refused(runs, out: Path, **options) -> str:
    """The line of a merge that is refused and leaves nothing."""
    root = runs[0].parent
    before = sorted(root.rglob("*"))
    with pytest.raises(ArtifactError) as error:
        merge(runs, out, **options)
    assert sorted(root.rglob("*")) == before
    assert "\n" not in str(error.value)
    return str(error.value)


def test_all_of_the_shards_is_there(tmp_path):
    runs = shards(tmp_path)
    record, notices = merge(list(reversed(runs)), tmp_path / "out")
    assert notices == []
    assert read(tmp_path / "out") == record
    assert [test.id for test in record.tests] == [f"test_x.py::test_pages[{number}]" for number in range(2, 8)]
    assert {test.seconds for test in record.tests} == {1.5}
    assert (record.status, record.shard, record.process, record.started) == (
        "complete",
        None,
        None,
        "2026-11-28T11:00:00+00:00",
    )
    assert record.argv == ["benchmarks", "-q"]
    assert [(one.shard.index, one.session, one.argv[2]) for one in record.merged] == [
        (index, f"session-{index}", f"{index}/3") for index in (1, 2, 3)
    ]
    # Each file of each test is there as it was.
    expected = {name: data for run in runs for name, data in files(run).items() if name != "run.json"}
    found = files(tmp_path / "out")
    assert b"6 passed" in found["summary.md"]
    assert found["index.html"].count(b'id="data-test-') == 6
    del found["run.json"], found["summary.md"], found["index.html"]
    assert found == expected
    again, _ = merge(runs, tmp_path / "again")
    assert again == record
    assert record.session not in {one.session for one in record.merged}


def test_a_directory_of_shards(tmp_path, capsys):
    shards(tmp_path / "runs")
    assert main(["merge", str(tmp_path / "runs"), "-o", str(tmp_path / "new" / "out")]) == 0
    shown = capsys.readouterr()
    assert shown.out == f"3 runs, 6 tests: 6 passed\nrun directory: {tmp_path / 'new' / 'out'}\n"
    assert shown.err == ""


def test_whole_runs_of_other_tests(tmp_path):
    runs = [write_run(tmp_path / str(number), [number], session=str(number)) for number in (1, 2)]
    record, _ = merge(runs, tmp_path / "out")
    assert len(record.tests) == 2


def test_what_a_stage_leaves_beside_its_directory_comes_along(tmp_path):
    runs = shards(tmp_path)
    beside = runs[1] / "test_x" / "test_pages-4" / "tmp" / "workload"
    beside.mkdir(parents=True)
    (beside / "frozen.yaml").write_text("a: 1\n")
    merge(runs, tmp_path / "out")
    assert (tmp_path / "out" / "test_x" / "test_pages-4" / "tmp" / "workload" / "frozen.yaml").read_text() == "a: 1\n"


def test_stages_of_one_test_in_two_runs(tmp_path):
    first, second = (write_run(tmp_path / name, session=name) for name in ("one", "two"))
    test = read(second).tests[0]
    other = test.dir.replace("direct_inference", "torch_profiler")
    (second / test.dir).rename(second / other)
    change(second, tests=[replace(test, id=f"{test.id}-2", stage="torch_profiler", dir=other)])
    merge([first, second], tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out" / other).parent.iterdir()) == [
        "direct_inference",
        "torch_profiler",
    ]
    for run in (first, second):
        (run / other).parent.joinpath("note").touch()
    assert f"{second}/test_x/test_pages-0/note is in another run, too" in refused([first, second], tmp_path / "no")


def test_an_empty_shard_counts_as_there(tmp_path):
    runs = shards(tmp_path, 2)
    empty = write_run(tmp_path / "empty", [], shard=Shard(3, 3, "split-1"), session="empty")
    for index, run in enumerate(runs, 1):
        change(run, shard=Shard(index, 3, "split-1"))
    record, _ = merge([*runs, empty], tmp_path / "out")
    assert len(record.tests) == 4
    assert len(record.merged) == 3


def test_the_joined_run_is_compared_and_saved(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shards(tmp_path / "before")
    shards(tmp_path / "after", tpot=0.6)
    for side in ("before", "after"):
        assert main(["merge", side, "-o", f"{side}-all", "--save", side]) == 0
    capsys.readouterr()
    for before, after in (("before-all", "after-all"), ("before", "after"), ("before-all", "after")):
        assert main(["compare", before, after, "--fail-on", "slower:2%", "--store", ".llmprof"]) == 1
        out = capsys.readouterr().out
        rows = [line for line in out.splitlines() if line.startswith("  Time per output token (ms)")]
        assert len([row for row in rows if "+11.1 %" in row]) == 6
    assert main(["trend", "before"]) == 0
    assert "before on NVIDIA H100 80GB HBM3: 1 run\n" in capsys.readouterr().out
    with pytest.raises(ArtifactError, match="is the same run as its baseline"):
        compare([saved_run(tmp_path / "before-all")], Store(tmp_path / ".llmprof").resolve("before"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({2: {"shard": Shard(2, 4, "split-1")}}, "s1 is shard 1/3 and {}/s2 2/4: they are not of one split"),
        ({2: {"shard": Shard(2, 3, "split-2")}}, "split other tests, or by other times, so tests may be in none"),
        ({2: {"shard": Shard(3, 3, "split-1")}}, "s2 and {}/s3 are both shard 3/3"),
        ({2: {"shard": None}}, "s1 is a shard and {}/s2 is none"),
        ({2: {"session": "session-1"}}, "s1 and {}/s2 are copies of one run"),
        ({2: {"status": "stopped"}}, "s2 was stopped, so tests may be missing"),
        ({3: {"status": "interrupted"}}, "s3 was interrupted, so tests may be missing"),
        ({3: {"status": "running"}}, "s3 was killed or goes on elsewhere"),
        # An id of its own: workers of pytest-xdist must collect the same tests.
        pytest.param(
            {3: {"status": "running", "process": Process.this()}},
            f"s3 goes on (process {os.getpid()}): wait",
            id="alive",
        ),
        ({3: {"schema": 99}}, "has schema 99, and this pytest-llmprof reads up to"),
    ],
)
def test_what_cannot_be_joined(tmp_path, changes, words):
    runs = shards(tmp_path)
    for index, values in changes.items():
        change(runs[index - 1], **values)
    assert words.format(tmp_path) in refused(runs, tmp_path / "out")


def test_a_live_run_is_refused_whatever_is_allowed(tmp_path):
    runs = shards(tmp_path)
    change(runs[0], status="running", process=Process.this())
    assert "goes on" in refused(runs, tmp_path / "out", allow_missing=True)


def test_a_run_twice(tmp_path):
    runs = shards(tmp_path)
    assert refused([*runs, runs[1]], tmp_path / "out") == f"{runs[1]} is given twice"


def test_a_test_in_two_shards(tmp_path):
    runs = shards(tmp_path)
    test = read(runs[0]).tests[0]
    change(runs[1], tests=[*read(runs[1]).tests, replace(test, dir=None, kind=None)])
    assert refused(runs, tmp_path / "out") == f"test_x.py::test_pages[2] is in {runs[0]} and in {runs[1]}"


def test_two_tests_with_one_directory(tmp_path):
    runs = shards(tmp_path)
    first, *rest = read(runs[1]).tests
    change(runs[1], tests=[replace(first, id="other.py::test_pages[2]"), *rest])
    upper = "Test_X/test_pages-2"
    (runs[1] / upper).parent.mkdir()
    (runs[1] / "test_x" / "test_pages-4").rename(runs[1] / upper)
    change(runs[1], tests=[replace(read(runs[1]).tests[0], dir=f"{upper}/direct_inference"), *rest])
    line = refused(runs, tmp_path / "out")
    assert "test_x.py::test_pages[2] in " in line
    assert "other.py::test_pages[2] in " in line
    assert "both have the directory Test_X/test_pages-2/direct_inference" in line


@pytest.mark.parametrize("place", ["../s2/test_x", "/etc/x/y", "run.json/x/y", "", "benchmark.json", "a/b", "a/b/c/d"])
def test_a_directory_that_is_no_tests(tmp_path, place):
    runs = shards(tmp_path)
    first, *rest = read(runs[0]).tests
    change(runs[0], tests=[replace(first, dir=place), *rest])
    assert "is no directory of a test" in refused(runs, tmp_path / "out")


def test_a_run_may_be_given_by_a_link(tmp_path):
    """Such as `llmprof-runs/latest`."""
    run = write_run(tmp_path / "run")
    (tmp_path / "latest").symlink_to(run)
    record, _ = merge([tmp_path / "latest"], tmp_path / "out")
    assert [test.dir for test in record.tests] == [test.dir for test in read(run).tests]


def test_a_link_is_not_followed(tmp_path):
    runs = shards(tmp_path)
    (runs[0] / "test_x").rename(tmp_path / "elsewhere")
    (runs[0] / "test_x").symlink_to(tmp_path / "elsewhere")
    assert "is a link" in refused(runs, tmp_path / "out")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "directory"])
def test_a_configuration_that_cannot_be_read(tmp_path, make):
    """Reading a pipe would wait for a writer."""
    runs = shards(tmp_path)
    path = runs[1] / "config.yaml"
    path.unlink(missing_ok=True)
    make(path)
    assert refused(runs, tmp_path / "out").startswith(f"cannot read {path}: ")


def test_a_test_whose_files_were_not_copied(tmp_path):
    runs = shards(tmp_path)
    (runs[1] / read(runs[1]).tests[0].dir / "metrics.json").unlink()
    assert "has no metrics.json, but its test has measured: copy the whole run" in refused(runs, tmp_path / "out")


@pytest.mark.parametrize("there", ["directory", "empty", "file", "link"])
def test_a_target_that_exists(tmp_path, there):
    runs, out = shards(tmp_path), tmp_path / "out"
    if there == "file":
        out.touch()
    elif there == "link":
        out.symlink_to("nowhere")
    else:
        out.mkdir()
        if there == "directory":
            (out / "mine").touch()
    assert refused(runs, out) == f"{out} exists: name a new directory"
    assert os.path.lexists(out)


def test_a_target_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    assert refused(shards(tmp_path), tmp_path / "file" / "out") == f"cannot write {tmp_path}/file/out: Not a directory"


@pytest.mark.parametrize("linked", [False, True])
def test_a_target_inside_one_of_the_runs(tmp_path, linked):
    """It would be a part of what it is made of."""
    runs = shards(tmp_path)
    (tmp_path / "link").symlink_to(runs[1])
    out = (tmp_path / "link" if linked else runs[1]) / "in" / "it"
    assert refused(runs, out) == f"{out} is inside of the run {runs[1]}: name a directory elsewhere"


def test_a_missing_shard(tmp_path, capsys):
    first, _, third = shards(tmp_path)
    line = refused([third, first], tmp_path / "out")
    assert line == (
        "missing: shard 2 of 3 (there: 1, 3); give its run, or join what is there with --allow-missing"
    )
    arguments = ["merge", str(first), str(third), "-o", str(tmp_path / "out"), "--allow-missing", "--save", "main"]
    assert main([*arguments, "--store", str(tmp_path / "store")]) == 0
    shown = capsys.readouterr()
    assert shown.err.splitlines() == [
        "note: missing: shard 2 of 3",
        "WARNING: not saved as main: the run is stopped, so it is half a run",
    ]
    assert read(tmp_path / "out").status == "stopped"
    assert Store(tmp_path / "store").names() == []
    assert main(["compare", str(tmp_path / "out"), str(third)]) == 4  # half a run
    assert "missing: shards 1, 2 of 3 (there: 3)" in refused([third], tmp_path / "no")


@pytest.mark.parametrize(("status", "expected"), [("stopped", "stopped"), ("interrupted", "interrupted")])
def test_half_a_shard(tmp_path, status, expected):
    runs = shards(tmp_path)
    change(runs[0], status=status)
    record, _ = merge(runs, tmp_path / "out", allow_missing=True)
    assert record.status == expected
    assert [one.status for one in record.merged] == [status, "complete", "complete"]


def test_a_killed_shard(tmp_path):
    runs = shards(tmp_path)
    first, second = read(runs[0]).tests
    (runs[0] / first.dir / ".tmp-1234.json").touch()
    change(runs[0], status="running", tests=[first, replace(second, outcome="running", kind=None)])
    record, _ = merge(runs, tmp_path / "out", allow_missing=True)
    assert record.status == "interrupted"
    assert [test.outcome for test in record.tests[:2]] == ["passed", "interrupted"]
    assert not [name for name in files(tmp_path / "out") if ".tmp-" in name]


def test_a_catalogue_of_all_metrics(tmp_path):
    runs = shards(tmp_path)
    metric = replace(read(runs[0]).metrics[0], name="mine")
    change(runs[1], metrics=[*read(runs[1]).metrics, metric])
    record, _ = merge(runs, tmp_path / "out")
    assert {one.name for one in record.metrics} == {one.name for one in read(runs[0]).metrics} | {"mine"}


# -- what differs --------------------------------------------------------------------------------------------------


def test_what_differs_is_named(tmp_path):
    runs = shards(tmp_path)
    change(runs[1], versions={"torch": "2.10"})
    (runs[0] / "config.yaml").write_text("infer:\n  engine: fast\n")
    (runs[1] / "config.yaml").write_text("infer:\n  engine: fast\n")
    (runs[2] / "config.yaml").write_text("infer:\n  engine: compiled\n")
    for run, digest in zip(runs, ("pages-1", "pages-2", "pages-1"), strict=True):
        for test in read(run).tests:
            path = run / test.dir / "metrics.json"
            path.write_text(path.read_text().replace('"pages-1"', f'"{digest}"').replace('"config-1"', f'"{run.name}"'))
            (run / test.dir / "config.yaml").write_text(f"dataset:\n  name: a\ninfer:\n  prompt: {run.name}\n")
    _, notices = merge(runs, tmp_path / "out")
    assert notices == [
        "other versions of torch: 2.9 (shard 1, shard 3), 2.10 (shard 2)",
        "shard 1 and shard 3: the configurations differ: infer.engine fast → compiled",
        "other pages under the same settings in shard 1 and shard 2, as in test_x.py::test_pages[4]",
    ]


def test_commits_whose_local_changes_git_does_not_know(tmp_path):
    runs = shards(tmp_path, 2)
    for run, dirty in zip(runs, (False, None), strict=True):
        for test in read(run).tests:
            path = run / test.dir / "environment.json"
            environment = json.loads(path.read_text())
            path.write_text(json.dumps({**environment, "git": {"commit": "0123456789abcdef", "dirty": dirty}}))
    _, notices = merge(runs, tmp_path / "out")
    assert notices == [
        "other commits: 0123456789ab (shard 1), 0123456789ab (local changes not known) (shard 2)",
    ]


def mixed(folder: Path, tpot: float = 0.54, swapped: bool = False) -> Path:
    """A joined run whose first shard ran on an H100 and the second on an A100, or the other way round."""
    gpus = [str(H100.gpu), A100]
    for index, gpu in enumerate(reversed(gpus) if swapped else gpus, 1):
        write_run(
            folder / f"s{index}",
            [index],
            shard=Shard(index, 2),
            session=f"{folder}-{index}",
            gpu=gpu,
            tpot=tpot if gpu == H100.gpu else 2 * tpot,
        )
    record, notices = merge([folder / "s1", folder / "s2"], folder / "all")
    assert record.status == "complete"
    assert [notice for notice in notices if "machines" in notice] == [
        f"other machines: {gpus[swapped]} (shard 1), {gpus[not swapped]} (shard 2); their times are not pooled"
    ]
    return folder / "all"


def test_gpus_are_saved_apart(tmp_path):
    run = saved_run(mixed(tmp_path / "one"))
    assert run.machine == f"{A100} + {H100.gpu}"
    parts = by_machine(run)
    assert [(part.machine, [test.id for test in part.tests]) for part in parts] == [
        (A100, ["test_x.py::test_pages[2]"]),
        (H100.gpu, ["test_x.py::test_pages[1]"]),
    ]
    assert len({part.key for part in parts} | {run.key}) == 3


def test_gpus_are_never_pooled(tmp_path, capsys, monkeypatch):
    """The store has, of each test, runs on both GPUs: the A100 takes twice as long."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "c"):
        for swapped in (False, True):
            folder = tmp_path / f"{name}{swapped}"
            values = {"a": 0.54, "b": 0.541, "c": 0.539}
            run = mixed(folder, values[name], swapped)
            for part in by_machine(saved_run(run)):
                Store(tmp_path / ".llmprof").save(part, "main")
    after = mixed(tmp_path / "after", 0.5405)
    assert main(["compare", "main", str(after), "--margin", "10%", "--format", "json"]) == 0
    rows = {row["test"]: row for row in json.loads(capsys.readouterr().out)["rows"] if row["metric"] == "tpot_ms"}
    assert {name: (row["verdict"], row["how"]) for name, row in rows.items()} == {
        f"test_x.py::test_pages[{number}]": ("same", "3 and 1 process") for number in (1, 2)
    }
    assert rows["test_x.py::test_pages[1]"]["before"] == pytest.approx(0.54, rel=0.01)
    assert rows["test_x.py::test_pages[2]"]["before"] == pytest.approx(1.08, rel=0.01)
    for gpu, value in ((str(H100.gpu), 0.54), (A100, 1.08)):
        assert main(["trend", "main", "--machine", gpu, "--metric", "tpot_ms", "--format", "json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert sorted(one["test"] for one in found) == [f"test_x.py::test_pages[{number}]" for number in (1, 2)]
        for one in found:
            assert one["values"] == pytest.approx([value] * 3, rel=0.01)
            assert one["changes"] == []


def test_run_directories_on_other_gpus_are_not_pooled(tmp_path, capsys):
    """A directory of joined runs is one side: of each test only the runs of its GPU count."""
    (tmp_path / "side").mkdir()
    for name, value in (("a", 0.54), ("b", 0.541), ("c", 0.539)):
        for swapped in (False, True):
            run = mixed(tmp_path / f"{name}{swapped}", value, swapped)
            run.rename(tmp_path / "side" / f"{name}{swapped}")
    after = mixed(tmp_path / "after", 0.5405)
    assert main(["compare", str(tmp_path / "side"), str(after), "--margin", "10%", "--format", "json"]) == 0
    rows = [row for row in json.loads(capsys.readouterr().out)["rows"] if row["metric"] == "tpot_ms"]
    assert [(row["verdict"], row["how"]) for row in rows] == [("same", "3 and 1 process")] * 2


# -- benchmark.json ------------------------------------------------------------------------------------------------


def benchmark_file(run: Path, node: str, *, cores: int = 16) -> None:
    """benchmark.json of the run's tests, as pytest-benchmark has it."""
    cpu = {"brand_raw": "Xeon", "count": cores, "hz_actual_friendly": node}
    stats = {"median": 0.7, "iqr": 0.01, "rounds": 5}
    write_json(
        run / "benchmark.json",
        {
            "machine_info": {"node": node, "system": "Linux", "cpu": cpu},
            "commit_info": {"id": "c1"},
            "benchmarks": [
                {"fullname": test.id, "name": test.id, "stats": stats, "extra_info": {"cer": 0.1}}
                for test in read(run).tests
            ],
            "datetime": f"2026-11-28T1{node[-1]}:00:00",
            "version": "5.3.1",
        },
    )


def test_benchmark_json_is_joined(tmp_path):
    runs = shards(tmp_path)
    for run in runs[:2]:  # a shard without rounds has none
        benchmark_file(run, f"node-{run.name[-1]}")
    merge(runs, tmp_path / "out")
    found = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert [one["fullname"] for one in found["benchmarks"]] == [
        f"test_x.py::test_pages[{number}]" for number in range(2, 6)
    ]
    assert found["machine_info"] == {"system": "Linux", "cpu": {"brand_raw": "Xeon", "count": 16}}
    assert (found["datetime"], found["version"]) == ("2026-11-28T11:00:00", "5.3.1")
    assert {tuple(one["extra_info"]) for one in found["benchmarks"]} == {("cer",)}
    assert read_run(tmp_path / "out" / "benchmark.json").machine == "Xeon, 16 cores"


def test_benchmark_json_of_other_gpus_has_each_tests_own(tmp_path):
    runs = [
        write_run(tmp_path / f"s{index}", [index], shard=Shard(index, 2), session=str(index), gpu=gpu)
        for index, gpu in ((1, H100.gpu), (2, A100))
    ]
    for index, run in enumerate(runs, 1):
        benchmark_file(run, f"node-{index}")
    merge(runs, tmp_path / "out")
    saved = read_run(tmp_path / "out" / "benchmark.json")
    assert [test.machine.gpu for test in saved.tests] == [H100.gpu, A100]
    assert saved.machine == f"{A100} + {H100.gpu}"
    # A foreign file of that key is told.
    file = tmp_path / "out" / "benchmark.json"
    file.write_text(file.read_text().replace('"llmprof_machine": {', '"llmprof_machine": 3, "x": {'))
    with pytest.raises(ArtifactError, match="llmprof_machine of the benchmark"):
        read_run(file)


@pytest.mark.parametrize("content", ["[]", "{}", "{", '{"benchmarks": 3}'])
def test_a_broken_benchmark_json(tmp_path, content):
    runs = shards(tmp_path)
    (runs[0] / "benchmark.json").write_text(content)
    assert f"{runs[0]}/benchmark.json is " in refused(runs, tmp_path / "out")


# -- killed --------------------------------------------------------------------------------------------------------

def test_ctrl_c_leaves_nothing(tmp_path, monkeypatch, capsys):
    runs = shards(tmp_path / "runs")

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("pytest_llmprof.cli.merge.write_summary", interrupted)
    assert main(["merge", str(tmp_path / "runs"), "-o", str(tmp_path / "place" / "out")]) == 130
    assert capsys.readouterr().err == "ERROR: interrupted\n"
    assert list((tmp_path / "place").iterdir()) == []
    assert len(runs) == 3


@pytest.mark.parametrize("room", [0, 1, 4000, 20000])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, room):
    """Real writes: no file may grow beyond *room* bytes."""
    runs = shards(tmp_path / "runs")
    (runs[2] / read(runs[2]).tests[0].dir / "trace.json.gz").write_bytes(bytes(30_000))
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))"
    code = f"{limit}\nimport sys; from pytest_llmprof.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "merge", *map(str, runs), "-o", str(tmp_path / "place" / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.startswith(("ERROR: cannot copy ", "ERROR: cannot write "))
    assert done.stderr.endswith("File too large\n")
    assert done.stderr.count("\n") == 1
    assert list((tmp_path / "place").iterdir()) == []


_KILLED = """
import os, signal, sys
from pathlib import Path
from pytest_llmprof.cli.merge import merge
at, number, root, runs = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], [Path(run) for run in sys.argv[4:]]
moments = 0
def audit(event, args):
    global moments
    if event not in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.copyfile"):
        return
    path = args[1] if event in ("os.rename", "shutil.copyfile") else args[0]
    if isinstance(path, (str, os.PathLike)) and os.path.abspath(path).startswith(root):
        moments += 1
        if moments == at:
            os.kill(os.getpid(), number)
sys.addaudithook(audit)
merge(runs, Path(root, "out"))
print(moments)
"""
LONG = os.environ.get("LLMPROF_FAULTS") == "long"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_merge_killed_at_any_moment_leaves_nothing_or_all(tmp_path, number):
    runs = shards(tmp_path / "runs")
    target = tmp_path / "target"
    whole = None
    kept = {run: files(run) for run in runs}

    def run(at: int, place: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", _KILLED, str(at), str(int(number)), str(place), *map(str, runs)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    target.mkdir()
    done = run(0, target)
    assert done.returncode == 0, done.stderr
    total, whole = int(done.stdout), files(target / "out")
    moments = range(1, total + 1, 1 if LONG else max(1, total // 8))
    lost = left = 0
    for at in moments:
        place = tmp_path / f"at-{at}"
        place.mkdir()
        assert run(at, place).returncode == -number
        lost += not (place / "out").exists()
        left += (place / "out").exists()
        if (place / "out").exists():  # killed after the rename, while the temporary directory was removed
            assert files(place / "out") == whole
        assert {run: files(run) for run in runs} == kept
        merge(runs, place / "out" if not (place / "out").exists() else place / "again")  # nothing is in its way
    assert lost > left
    print(f"{len(moments)} kills of {total} moments")
