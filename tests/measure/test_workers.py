"""What each worker of a host gets, and what a record says of it."""

from __future__ import annotations

import pytest

from pytest_llmprof.measure.environment import environment
from pytest_llmprof.measure.workers import shares, this_worker
from pytest_llmprof.records.environment import Environment, Workers


def test_a_gpu_each():
    one, two = shares(2, ["GPU-a", "GPU-b"], 16, {})
    assert (one.gpu, two.gpu) == ("GPU-a", "GPU-b")
    assert one.workers == two.workers == Workers(2, 1)
    assert one.variables["CUDA_VISIBLE_DEVICES"] == "GPU-a"


def test_more_workers_than_gpus_take_turns():
    found = shares(5, ["0", "1"], 16, {})
    assert [share.gpu for share in found] == ["0", "1", "0", "1", "0"]
    assert [share.workers.on_gpu for share in found] == [3, 2, 3, 2, 3]


def test_without_gpus():
    (only,) = shares(1, [], 4, {})
    assert (only.gpu, only.workers) == (None, Workers(1, None))
    assert "CUDA_VISIBLE_DEVICES" not in only.variables


@pytest.mark.parametrize(("count", "processors", "threads"), [(2, 4, 2), (2, 2, 1), (3, 2, 1), (2, 5, 2), (1, 8, 8)])
def test_threads_are_divided(count, processors, threads):
    assert {share.threads for share in shares(count, [], processors, {})} == {threads}
    assert shares(count, [], processors, {})[0].variables["OMP_NUM_THREADS"] == str(threads)


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_threads_of_the_user_stay(name):
    (share, _) = shares(2, [], 8, {name: "5"})
    assert share.threads is None
    assert "OMP_NUM_THREADS" not in share.variables


def test_a_worker_knows_itself():
    for count, gpus in ((2, ["a", "b"]), (3, ["a", "b"]), (2, [])):
        for share in shares(count, gpus, 2, {}):
            assert this_worker(share.variables) == share.workers
    assert this_worker({}) is None
    assert this_worker({"LLMPROF_WORKERS": "x"}) is None


def test_environment_json_has_it(monkeypatch):
    monkeypatch.delenv("LLMPROF_WORKERS", raising=False)
    assert environment("cpu").workers is None
    for name, value in shares(3, ["GPU-a"], 2, {})[0].variables.items():
        monkeypatch.setenv(name, value)
    assert environment("cpu").workers == Workers(3, 3)


@pytest.mark.parametrize(
    ("workers", "device", "others"),
    [
        (None, "cuda:0", 0),
        (Workers(2, 1), "cuda:0", 0),
        (Workers(3, 2), "cuda:0", 1),
        (Workers(2, None), "cuda:0", 1),
        (Workers(2, 1), "cpu", 1),
        (Workers(1, 1), "cpu", 0),
        (Workers(1, None), "cuda:0", 0),
    ],
)
def test_who_may_have_disturbed(workers, device, others):
    assert Environment(workers=workers).other_workers(device) == others
