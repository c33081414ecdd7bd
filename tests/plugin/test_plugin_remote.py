"""Files that a worker on another machine sends: what the controller takes, and what it refuses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytest_llmprof import __version__
from pytest_llmprof.errors import ArtifactError
from pytest_llmprof.plugin.remote import Away, Home, may_be_apart

STAGE = "test_it/test_pages/direct_inference"


class Run:
    """A session's run directory."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.begun = 0

    def begin(self) -> None:
        self.begun += 1
        self.run_dir.mkdir(exist_ok=True)


class Line:
    """A channel whose other end answers at once."""

    def __init__(self) -> None:
        self.answers: list[object] = []
        self.callback = None

    def setcallback(self, callback, endmarker):
        self.callback, self.end = callback, endmarker

    def send(self, message):
        self.answers.append(message)


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / "run")


@pytest.fixture
def line(run):
    line = Line()
    assert Home(lambda: run).connect(line) is line
    line.callback(("begin", __version__))
    assert line.answers.pop() == ("kept", os.fsencode(run.run_dir))
    assert run.begun == 1
    return line


def send(line, *messages):
    """Send *messages* and give the one answer."""
    for message in messages:
        line.callback(message)
    (answer,) = line.answers
    line.answers.clear()
    return answer


def left(run) -> list[str]:
    return sorted(path.relative_to(run.run_dir).as_posix() for path in run.run_dir.rglob("*") if path.is_file())


def file(name: bytes, *pieces: bytes):
    return [("file", name), *pieces]


def test_files_arrive_whole(run, line):
    kept = send(line, ("open", STAGE.encode(), True), *file(b"a/b", b"1", b"2"), *file(b"empty"), ("close",))
    assert kept[0] == "kept"
    assert (run.run_dir / STAGE / "a/b").read_bytes() == b"12"
    assert left(run) == [f"{STAGE}/a/b", f"{STAGE}/empty"]
    more = *file(b"a/c", b"3"), *file(b"a/b", b"4")
    assert send(line, ("open", STAGE.encode(), False), *more, ("close",))[0] == "kept"
    assert (run.run_dir / STAGE / "a/b").read_bytes() == b"4"
    assert len(left(run)) == 3
    assert send(line, ("open", STAGE.encode(), True), *file(b"new", b"5"), ("close",))[0] == "kept"
    assert left(run) == [f"{STAGE}/new"]


@pytest.mark.parametrize("name", [b"../x", b"a/../../x", b"/etc/x", b"", b"a\0b", b".."])
def test_a_file_outside_is_refused(run, line, name):
    kind, text = send(line, ("open", STAGE.encode(), True), *file(b"good", b"1"), *file(name, b"bad"), ("close",))
    assert kind == "refused"
    assert "leaves the directory of its test" in text
    assert left(run) == []
    assert send(line, ("open", STAGE.encode(), True), *file(b"good", b"1"), ("close",))[0] == "kept"


@pytest.mark.parametrize("name", [b"..", b"../a/b", b"/tmp/a/b", b"a/b", b"a/../b/c", b"run.json", b"a/b/c/d"])
def test_a_directory_of_no_test_is_refused(run, line, name):
    assert send(line, ("open", name, True), *file(b"x", b"1"), ("close",))[0] == "refused"
    assert left(run) == []


@pytest.mark.parametrize("place", ["test_it", "test_it/test_pages", STAGE])
def test_nothing_is_written_behind_a_link(run, line, tmp_path, place):
    (tmp_path / "other").mkdir()
    (run.run_dir / place).parent.mkdir(parents=True, exist_ok=True)
    (run.run_dir / place).symlink_to(tmp_path / "other")
    kind, text = send(line, ("open", STAGE.encode(), True), *file(b"x", b"1"), ("close",))
    assert (kind, text.endswith("is a link, and a run writes nothing behind one: remove it")) == ("refused", True)
    assert list((tmp_path / "other").iterdir()) == []


def test_later_files_are_not_written_behind_a_link(run, line, tmp_path):
    assert send(line, ("open", STAGE.encode(), True), *file(b"x", b"1"), ("close",))[0] == "kept"
    (run.run_dir / STAGE / "sub").symlink_to(tmp_path)
    assert send(line, ("open", STAGE.encode(), False), *file(b"sub/y", b"1"), ("close",))[0] == "refused"
    assert not (tmp_path / "y").exists()


def test_a_worker_that_ends_in_the_middle_leaves_nothing(run, line):
    for message in (("open", STAGE.encode(), True), *file(b"x", b"1")):
        line.callback(message)
    line.callback(line.end)
    assert list(run.run_dir.iterdir()) == []


def test_a_worker_with_another_version_is_refused(run):
    line = Line()
    Home(lambda: run).connect(line)
    kind, text = send(line, ("begin", "0.0.1"))
    assert kind == "refused"
    assert text == (
        f"pytest-llmprof is {__version__} here and 0.0.1 on the machine of a worker: install the same version on all "
        "machines"
    )
    assert run.begun == 0


class Wire:
    """A worker's end of a channel to a `Line`."""

    def __init__(self, line: Line) -> None:
        self._line = line

    def send(self, message):
        self._line.callback(message)

    def receive(self):
        return self._line.answers.pop(0)


class Remote:
    """The session of a worker that does not see the run directory."""

    def __init__(self) -> None:
        self.run_dir = Path()

    def begun(self) -> bool:
        return False

    def begin_in(self, path: Path) -> None:
        self.run_dir = path


def test_a_worker_sends_what_is_new(run, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    line, session = Line(), Remote()
    away = Away(Wire(line))
    Home(lambda: run).connect(line)
    away.begin(session)
    assert away.apart
    place = session.run_dir / STAGE
    (place / "deep").mkdir(parents=True)
    (place / "deep" / "ü\udcff").write_bytes(b"any name")
    (place / ".tmp-half").write_bytes(b"")
    away.send([STAGE, "test_it/test_pages/tmp"])
    home = run.run_dir / STAGE
    assert [path.name for path in home.rglob("*")] == ["deep", "ü\udcff"]
    (home / "deep" / "ü\udcff").unlink()
    (place / "more").write_bytes(b"x" * 3_000_000)
    away.send([STAGE])
    assert [path.name for path in home.rglob("*") if path.is_file()] == ["more"]
    assert (home / "more").stat().st_size == 3_000_000
    away.remove([STAGE])
    assert not place.exists()
    away.close()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_file_that_cannot_be_read_costs_the_others_nothing(run, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    line, session = Line(), Remote()
    away = Away(Wire(line))
    Home(lambda: run).connect(line)
    away.begin(session)
    place = session.run_dir / STAGE
    place.mkdir(parents=True)
    (place / "a").write_bytes(b"1")
    (place / "b").symlink_to("/proc/self/mem")  # a file that nobody can read from its begin
    with pytest.raises(ArtifactError, match=r"cannot read .*/b: Input/output error"):
        away.send([STAGE])
    assert left(run) == []
    (place / "b").unlink()
    away.send([STAGE])
    assert left(run) == [f"{STAGE}/a"]
    away.close()


@pytest.mark.parametrize(
    ("spec", "apart"),
    [
        ("popen", False),
        ("ssh=host//chdir=x", True),
        ("popen//via=host", True),
        ("popen//python=python3.12", True),
        ("popen//env:CUDA_VISIBLE_DEVICES=0", False),
        ("socket=host:8888", True),
    ],
)
def test_which_workers_may_be_apart(spec, apart):
    execnet = pytest.importorskip("execnet")
    assert may_be_apart(execnet.XSpec(spec)) is apart
