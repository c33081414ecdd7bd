"""`llmprof merge RUN… -o RUN`: join the run directories of shards to one run."""

from __future__ import annotations

import argparse
import errno
import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from pytest_llmprof.cli.options import Subparsers, add_store
from pytest_llmprof.cli.sides import say
from pytest_llmprof.compare.comparable import config_notice
from pytest_llmprof.compare.result import COMPARISON
from pytest_llmprof.compare.saved import MACHINE, by_machine, machine_name, places, read_config, saved_run
from pytest_llmprof.compare.store import Store, check_name
from pytest_llmprof.errors import ArtifactError
from pytest_llmprof.records.baseline import SavedRun
from pytest_llmprof.records.files import read_json, write_json
from pytest_llmprof.records.run import MergedRun, RunRecord, TestRecord
from pytest_llmprof.report.page import PAGE, write_page
from pytest_llmprof.report.run_summary import SUMMARY, write_summary
from pytest_llmprof.text.escape import one_line
from pytest_llmprof.text.numbers import count

_OWN_OPTIONS = ("--llmprof-shard", "--llmprof-shard-times", "--llmprof-run-dir")
"""pytest's options that are those of shards."""
_NOT_TESTS = ("run.json", "config.yaml", "benchmark.json", COMPARISON, SUMMARY, PAGE)
"""Files of a run beside its tests' directories."""


def add(commands: Subparsers) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "merge",
        help="join the runs of shards into one run",
        description="Join the runs of shards (--llmprof-shard) into one run, which is read as any other.",
        epilog="Exit code 0, also where tests failed; 4: bad input, a missing shard, or a run that is not complete.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="a run directory, or a directory of them")
    parser.add_argument(
        "-o", "--out", required=True, metavar="RUN", type=Path, help="the run directory to make; it must not exist"
    )
    parser.add_argument(
        "--allow-missing",
        action="store_true",
        help="join what is there, even if a shard is missing or a run is not complete",
    )
    parser.add_argument("--save", metavar="NAME", help="save the joined run in the store under NAME")
    add_store(parser)
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    store = Store(options.store)
    if options.save is not None:
        check_name(options.save)
        store.check_writable()
    runs = [place for run in options.runs for place in places(run)]
    record, notices = merge(runs, options.out, allow_missing=options.allow_missing)
    for notice in notices:
        say(f"note: {notice}")
    print(f"{count(len(record.merged), 'run')}, {outcomes(record)}")
    print(f"run directory: {one_line(str(options.out), 4096)}")
    if options.save is not None:
        if record.status != "complete":
            say(f"WARNING: not saved as {options.save}: the run is {record.status}, so it is half a run")
            return 0
        for part in by_machine(saved_run(options.out)):
            print(f"saved as {options.save}: {one_line(str(store.save(part, options.save)), 4096)}")
    return 0


def outcomes(run: RunRecord) -> str:
    """"3 tests: 2 passed, 1 failed"."""
    numbers = Counter(test.outcome for test in run.tests)
    told = ", ".join(f"{number} {outcome}" for outcome, number in numbers.most_common())
    return f"{count(len(run.tests), 'test')}{f': {told}' if told else ''}"


class _BenchmarkFile(msgspec.Struct):
    """A file of pytest-benchmark."""

    benchmarks: list[dict[str, Any]]
    machine_info: dict[str, Any] = {}
    commit_info: dict[str, Any] = {}
    datetime: str = ""
    version: str = ""


@dataclass(frozen=True)
class _Part:
    """One of the runs."""

    path: Path
    record: RunRecord
    saved: SavedRun

    @property
    def label(self) -> str:
        """What notices call it."""
        shard = self.record.shard
        return str(self.path) if shard is None else f"shard {shard.index}"


def merge(runs: Sequence[Path], out: Path, *, allow_missing: bool = False) -> tuple[RunRecord, list[str]]:
    """Join the run directories *runs* to a new one, *out*. Gives its run.json, and what differs between the runs.

    *out* gets its name when all is in it. Raises `ArtifactError` with one line for a run that has not ended or was
    stopped, a missing shard (both taken as they are with *allow_missing*), a test or a shard that is there twice,
    shards of different splits, an *out* that exists or lies in one of the runs.
    """
    out = Path(os.path.abspath(out))
    if os.path.lexists(out):
        raise ArtifactError(f"{out} exists: name a new directory")
    for run in runs:
        if out.resolve().is_relative_to(run.resolve()):
            raise ArtifactError(f"{out} is inside of the run {run}: name a directory elsewhere")
    parts = sorted(
        (_read(run, allow_missing) for run in runs),
        key=lambda part: part.record.shard.index if part.record.shard else 0,
    )
    missing = _check_shards(parts, allow_missing)
    _check_tests(parts)
    record = _record(parts, half=bool(missing))
    notices = [*missing, *_differences(parts)]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=out.parent, prefix=".tmp-", ignore_cleanup_errors=True) as temporary:
            new = Path(temporary, "run")
            new.mkdir()
            _fill(new, parts, record)
            if os.path.lexists(out):  # a rename would replace an empty directory
                raise ArtifactError(f"{out} exists: name a new directory")
            new.rename(out)
    except (OSError, shutil.Error) as error:
        raise ArtifactError(f"cannot write {out}: {_why(error)}") from error
    return record, notices


def _why(error: OSError | shutil.Error) -> str:
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list):
        source, _, why = error.args[0][0]  # the first file that could not be copied
        return f"{source}: {why}"
    if isinstance(error, FileExistsError):  # of a directory above
        return os.strerror(errno.ENOTDIR)
    return error.strerror or str(error)


# -- reading and checking ------------------------------------------------------------------------------------------


def _read(run: Path, allow_missing: bool) -> _Part:
    path = run / "run.json"
    if not path.is_file():
        raise ArtifactError(f"{run} is no run directory: there is no run.json in it")
    record = RunRecord.read(run)
    if record.alive():
        raise ArtifactError(f"{run} goes on (process {record.process.pid}): wait for its end")  # type: ignore[union-attr]
    if record.status != "complete" and not allow_missing:
        how = "was killed or goes on elsewhere" if record.status == "running" else f"was {record.status}"
        raise ArtifactError(
            f"{run} {how}, so tests may be missing: run it again, or join what is there with --allow-missing"
        )
    for test in record.tests:
        if test.dir is None:
            continue
        place = PurePosixPath(test.dir)
        if place.is_absolute() or ".." in place.parts or len(place.parts) != 3 or place.parts[0] in _NOT_TESTS:
            raise ArtifactError(f"{path}: {one_line(test.dir)} is no directory of a test")
        if any((run / parent).is_symlink() for parent in (place, *place.parents[:-1])):
            raise ArtifactError(f"{run / test.dir} is a link, and a run writes nothing behind one")
        if test.kind is not None and not (run / test.dir / "metrics.json").is_file():
            raise ArtifactError(
                f"{run / test.dir} has no metrics.json, but its test has measured: copy the whole run directory"
            )
    return _Part(run, record, saved_run(run))


def _check_shards(parts: Sequence[_Part], allow_missing: bool) -> list[str]:
    """Refuse runs that are not the shards of one suite. Gives a line where one is missing and may be."""
    sessions: dict[str, _Part] = {}
    for part in parts:
        if part.record.session and (same := sessions.setdefault(part.record.session, part)) is not part:
            twice = part.path.resolve() == same.path.resolve()
            raise ArtifactError(
                f"{part.path} is given twice" if twice else f"{same.path} and {part.path} are copies of one run"
            )
    sharded = [(part, part.record.shard) for part in parts if part.record.shard is not None]
    if not sharded:
        return []
    first, shard = sharded[0]
    whole = next((part for part in parts if part.record.shard is None), None)
    if whole is not None:
        raise ArtifactError(f"{first.path} is a shard and {whole.path} is none: join either shards or whole runs")
    seen: dict[int, _Part] = {}
    for part, own in sharded:
        if own.count != shard.count:
            raise ArtifactError(
                f"{first.path} is shard {shard.index}/{shard.count} and {part.path} {own.index}/{own.count}: "
                "they are not of one split"
            )
        if own.split and shard.split and own.split != shard.split:
            raise ArtifactError(
                f"{first.path} and {part.path} split other tests, or by other times, so tests may be in none: give "
                "all jobs the same tests, arguments and --llmprof-durations"
            )
        if (same := seen.setdefault(own.index, part)) is not part:
            raise ArtifactError(f"{same.path} and {part.path} are both shard {own.index}/{own.count}")
    missing = [str(index) for index in range(1, shard.count + 1) if index not in seen]
    if not missing:
        return []
    text = f"{'shards' if len(missing) > 1 else 'shard'} {', '.join(missing)} of {shard.count}"
    if not allow_missing:
        there = ", ".join(str(index) for index in sorted(seen))
        raise ArtifactError(
            f"missing: {text} (there: {there}); give its run, or join what is there with --allow-missing"
        )
    return [f"missing: {text}"]


def _check_tests(parts: Sequence[_Part]) -> None:
    """Refuse a test that is in two runs, and two tests with one directory."""
    tests: dict[str, _Part] = {}
    dirs: dict[str, tuple[_Part, TestRecord]] = {}
    for part in parts:
        for test in part.record.tests:
            if test.id in tests:
                raise ArtifactError(f"{one_line(test.id)} is in {tests[test.id].path} and in {part.path}")
            tests[test.id] = part
            if test.dir is None:
                continue
            other, known = dirs.setdefault(test.dir.casefold(), (part, test))
            if known is not test:
                raise ArtifactError(
                    f"{one_line(known.id)} in {other.path} and {one_line(test.id)} in {part.path} both have the "
                    f"directory {one_line(test.dir)}: split one suite with --llmprof-shard"
                )


# -- the joined run ------------------------------------------------------------------------------------------------


def _record(parts: Sequence[_Part], *, half: bool) -> RunRecord:
    records = [part.record for part in parts]
    statuses = {record.status for record in records}
    status = "stopped" if half or "stopped" in statuses else "complete"
    if statuses & {"running", "interrupted"}:
        status = "interrupted"
    tests = [test for record in records for test in record.tests]
    metrics = {metric.name: metric for record in reversed(records) for metric in record.metrics}
    versions = {name: value for record in reversed(records) for name, value in record.versions.items()}
    sessions = msgspec.json.encode(sorted(record.session for record in records))
    return RunRecord(
        status=status,
        argv=_shared_arguments(records[0].argv),
        started=min(record.started for record in records),
        session=hashlib.sha256(sessions).hexdigest()[:32],
        versions=versions,
        metrics=list(metrics.values()),
        tests=[
            msgspec.structs.replace(test, outcome="interrupted" if test.outcome == "running" else test.outcome)
            for test in tests
        ],
        merged=[
            MergedRun(record.shard, record.argv, record.started, record.session, record.status, record.versions)
            for record in records
        ],
    )


def _shared_arguments(argv: Sequence[str]) -> list[str]:
    """pytest's arguments without those that are one shard's own."""
    found, words = [], iter(argv)
    for word in words:
        if word in _OWN_OPTIONS:
            next(words, None)
        elif word.partition("=")[0] not in _OWN_OPTIONS:
            found.append(word)
    return found


def _fill(new: Path, parts: Sequence[_Part], record: RunRecord) -> None:
    """Write all of the joined run into *new*."""
    for part in parts:
        # With all stages, and what a stage leaves beside them.
        test_dirs = dict.fromkeys(PurePosixPath(test.dir).parent for test in part.record.tests if test.dir is not None)
        for test_dir in test_dirs:
            if (part.path / test_dir).is_dir():
                shutil.copytree(
                    part.path / test_dir,
                    new / test_dir,
                    symlinks=True,
                    ignore=shutil.ignore_patterns(".tmp-*"),
                    copy_function=_copy_new,
                    dirs_exist_ok=True,  # of a test whose stages ran in several runs
                )
    config = next((part.path / "config.yaml" for part in parts if (part.path / "config.yaml").is_file()), None)
    if config is not None:
        shutil.copyfile(config, new / "config.yaml")
    if (benchmark := _benchmark_json(parts)) is not None:
        write_json(new / "benchmark.json", benchmark)
    write_json(new / "run.json", record)
    write_summary(new)
    write_page(new)


def _copy_new(source: str, target: str) -> None:
    """Copy a file. Its errors end the merge at once: `copytree` would go on with the other files."""
    if os.path.lexists(target):
        raise ArtifactError(f"{source} is in another run, too: two runs of one test cannot be joined")
    try:
        shutil.copy2(source, target)
    except OSError as error:
        raise ArtifactError(f"cannot copy {source}: {error.strerror or error}") from error


def _benchmark_json(parts: Sequence[_Part]) -> dict[str, Any] | None:
    """The files of pytest-benchmark as one: of `machine_info` what all share. Where the tests ran on several machines,
    each has its own in `extra_info`."""
    files = []
    for part in parts:
        path = part.path / "benchmark.json"
        if path.exists():
            found = read_json(path)
            try:
                files.append(msgspec.convert(found, _BenchmarkFile))
            except msgspec.ValidationError as error:
                raise ArtifactError(f"{path} is no file of pytest-benchmark: {error}") from error
    if not files:
        return None
    machines = {test.id: test.machine for part in parts for test in part.saved.tests}
    several = len({machine_name(machine) for machine in machines.values()}) > 1
    benchmarks = []
    for one in (one for file in files for one in file.benchmarks):
        machine = machines.get(str(one.get("fullname")))
        extra = one.get("extra_info")
        if several and machine is not None and (extra is None or isinstance(extra, dict)):
            one["extra_info"] = {**(extra or {}), MACHINE: msgspec.to_builtins(machine)}
        benchmarks.append(one)
    return {
        "machine_info": _common([file.machine_info for file in files]),
        "commit_info": files[0].commit_info,
        "benchmarks": benchmarks,
        "datetime": min(file.datetime for file in files),
        "version": files[0].version,
    }


def _common(values: Sequence[Any]) -> Any:
    """What all *values* share; None where they differ."""
    if all(isinstance(value, dict) for value in values):
        shared = [key for key in values[0] if all(key in value for value in values)]
        return {key: found for key in shared if (found := _common([value[key] for value in values])) is not None}
    return values[0] if all(value == values[0] for value in values) else None


# -- what differs --------------------------------------------------------------------------------------------------


def _differences(parts: Sequence[_Part]) -> Iterator[str]:
    """A line for all that should be the same in shards of one run, and is not."""
    versions = [(part.label, part.record.versions) for part in parts]
    for name in dict.fromkeys(name for _, own in versions for name in own):
        yield from _told(f"versions of {name}", ((label, own.get(name)) for label, own in versions))
    commits = [(part.label, part.saved.git) for part in parts]
    yield from _told("commits", ((label, git.brief) for label, git in commits if git))
    machines = [
        (part.label, machine_name(test.machine)) for part in parts for test in part.saved.tests if test.problem is None
    ]
    yield from (f"{line}; their times are not pooled" for line in _told("machines", machines))
    configs = [(part, read_config(part.path / "config.yaml")) for part in parts]
    first, config = configs[0]
    for part, own in configs[1:]:
        if own != config:
            yield f"{first.label} and {part.label}: {config_notice(config, own)}"
    yield from _other_content("dataset.", "pages", parts, lambda fingerprint: fingerprint.dataset)
    yield from _other_content("model.", "weights", parts, lambda fingerprint: fingerprint.model)


def _told(what: str, values: Iterable[tuple[str, object]]) -> Iterator[str]:
    """"other versions of torch: 2.8 (shard 1), 2.9 (shards 2, 3)", where *values* differ."""
    found: dict[str, dict[str, None]] = {}
    for label, value in values:
        found.setdefault(str(value), {})[label] = None
    if len(found) > 1:
        yield f"other {what}: " + ", ".join(f"{value} ({', '.join(labels)})" for value, labels in found.items())


def _other_content(
    block: str, what: str, parts: Sequence[_Part], digest: Callable[[Any], str | None]
) -> Iterator[str]:
    """A line for each configured *block* whose content was not the same in two runs."""
    seen: dict[bytes, tuple[_Part, str]] = {}
    told: set[bytes] = set()
    for part in parts:
        for test in part.saved.tests:
            config: Mapping[str, Any] | None = part.saved.configs.get(test.fingerprint.config or "")
            found = digest(test.fingerprint)
            if not config or found is None:
                continue
            key = repr(sorted((name, value) for name, value in config.items() if name.startswith(block))).encode()
            other, known = seen.setdefault(key, (part, found))
            if known != found and key not in told:
                told.add(key)
                where = f"{other.label} and {part.label}, as in {one_line(test.id)}"
                yield f"other {what} under the same settings in {where}"
