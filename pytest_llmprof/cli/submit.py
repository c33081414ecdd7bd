"""`llmprof submit`: the shards of a suite as jobs of a cluster, and one run made of them at the end."""

from __future__ import annotations

import argparse
import datetime
import os
import re
import shlex
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_llmprof.cli import clusters
from pytest_llmprof.cli.merge import merge, outcomes
from pytest_llmprof.cli.options import Subparsers, pytest_arguments
from pytest_llmprof.cli.processes import NOT_MEASURED, cause, ended, ignore_signals, lines_of
from pytest_llmprof.cli.shard_job import JOB, RUN, run_shard
from pytest_llmprof.cli.sides import say
from pytest_llmprof.errors import ArtifactError, ConfigError, LlmprofError
from pytest_llmprof.records import submission
from pytest_llmprof.records.files import decode_record, read_bytes, write_json, write_text
from pytest_llmprof.records.run import RunRecord
from pytest_llmprof.records.submission import ShardJob, Submission
from pytest_llmprof.text.escape import one_line
from pytest_llmprof.text.numbers import count

_RUNS = "llmprof-runs"
_SUBMISSION = "submit.json"
_TIMES = "times.json"
"""The times of tests by which all shards are split: the first job writes it."""
_SLURM = "--slurm-"
_OWN = ("--llmprof-shard", "--llmprof-run-dir", "--llmprof-save")
"""Options of pytest that this command gives, or that shards do not have."""
_REFUSED = ("--array", "--chdir", "--output", "--error", "--wrap", "--parsable", "--wait")
"""Options of sbatch on which this command and submitit rely."""
_ENDED = (0, 1)
"""pytest's exit codes of a session that came to its end."""
_POLL_S = (0.5, 10.0)
"""Between two looks at the jobs: at first, and at most."""
_LATE_S = 20.0
"""How long a network file system may hide what an ended job has written."""
_EPILOG = """\
Options of pytest come after a path of tests, or after "--". Any long option of sbatch may be given as
--slurm-OPTION=VALUE (--slurm-partition=gpu --slurm-gres=gpu:1 --slurm-time=60). Exit code: the highest of the shards'
own; 3 where one did not complete; 4: bad input.
"""


def add(commands: Subparsers) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "submit",
        help="run the shards of a suite as jobs of Slurm or of this machine",
        usage="llmprof submit [OPTIONS] [--] [PYTEST ARGS]",
        description="Split a suite into shards, run each as a job, wait for all, and join their runs into one.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "--cluster", choices=("slurm", "local"), help="where the jobs run: Slurm, or processes of this machine"
    )
    parser.add_argument("--shards", metavar="N", help="the number of jobs")
    parser.add_argument(
        "-o", "--out", type=Path, metavar="RUN", help=f"the run that is made of them (default: {_RUNS}/TIME)"
    )
    parser.add_argument(
        "--resume", type=Path, metavar="RUN", help="run again the shards of RUN that did not complete, then join all"
    )
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="PYTEST ARGS", help="what pytest is given")
    parser.set_defaults(command=_run, passed_on=_SLURM, hint='; options of pytest come after a path or "--"')


def _run(options: argparse.Namespace) -> int:
    return (_resumed(options) if options.resume else _new(options)).run()


# -- what was asked for ----------------------------------------------------------------------------------------------


def _new(options: argparse.Namespace) -> _Submitted:
    if options.cluster is None or options.shards is None:
        missing = "--cluster slurm or --cluster local" if options.cluster is None else "--shards N"
        raise ConfigError(f"{missing} is missing")
    slurm = _slurm_options(options)
    asked = Submission(
        cluster=options.cluster,
        shards=_number(options.shards),
        arguments=_pytest_arguments(options.arguments),
        options=slurm,
        directory=os.getcwd(),
    )
    clusters.check(asked.cluster)
    stamp = datetime.datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    out = Path(os.path.abspath(options.out or Path(_RUNS) / stamp))
    place = _place(out)
    for path in (out, place):
        if os.path.lexists(path):
            more = f"; llmprof submit --resume {shlex.quote(str(out))} goes on with it" if path == place else ""
            raise ArtifactError(f"{'-o ' if options.out else ''}{path} exists: name a new run{more}")
    try:
        place.mkdir(parents=True)
        ignore = out.parent / ".gitignore"
        if options.out is None and not ignore.exists():
            write_text(ignore, "# Made by pytest-llmprof: runs are not for version control.\n*\n")
    except OSError as error:
        raise ArtifactError(f"cannot make {place}: {error.strerror}; name another run with -o") from error
    return _Submitted(asked, out)


def _resumed(options: argparse.Namespace) -> _Submitted:
    given = [name for name in ("cluster", "shards", "out") if getattr(options, name) is not None]
    if given or options.arguments:
        what = f"--{given[0]}" if given else options.arguments[0]
        raise ConfigError(f"--resume takes all from its run, but for --slurm-OPTION=VALUE: leave {what} out")
    out = Path(os.path.abspath(options.resume))
    path = _place(out) / _SUBMISSION
    if not path.is_file():
        raise ArtifactError(f"--resume {options.resume}: no llmprof submit has made it (there is no {path})")
    if os.path.lexists(out):
        raise ArtifactError(f"--resume {options.resume}: it is whole, there is nothing to do")
    asked = decode_record(read_bytes(path), Submission, submission.SCHEMA, path)
    asked.options |= _slurm_options(options, asked.cluster)
    clusters.check(asked.cluster)
    return _Submitted(asked, out)


def _place(out: Path) -> Path:
    """Where the shards of the run *out* are."""
    return out.with_name(f"{out.name}.shards")


def _number(text: str) -> int:
    if re.fullmatch("[0-9]{1,6}", text) is None or not 1 <= int(text) <= 1000:
        raise ConfigError(f"--shards: {one_line(repr(text))} is not allowed; give a number from 1 to 1000")
    return int(text)


def _slurm_options(options: argparse.Namespace, cluster: str | None = None) -> dict[str, str | bool]:
    found: dict[str, str | bool] = {}
    for word in options.passed_on_words:
        name, equals, value = word.removeprefix(_SLURM).partition("=")
        if not name or any(f"--{name}" == one for one in _REFUSED):
            raise ConfigError(f"{word.partition('=')[0]} is not allowed: llmprof submit sets it itself")
        found[name] = value if equals else True
    if found and (cluster or options.cluster) != "slurm":
        raise ConfigError(f"{options.passed_on_words[0]} is for --cluster slurm")
    return found


def _pytest_arguments(given: Sequence[str]) -> list[str]:
    arguments = pytest_arguments(given)
    for one in arguments:
        name = one.partition("=")[0]
        if name in _OWN:
            why = "the joined run is saved by llmprof merge --save" if name == _OWN[2] else "each shard has its own"
            raise ConfigError(f"{name} is not for shards: {why}")
    return arguments


# -- the jobs --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Attempt:
    """One attempt at a shard, as it is on the disk."""

    path: Path
    job: ShardJob | None
    run: RunRecord | None

    @property
    def complete(self) -> bool:
        """Whether the shard needs no other."""
        return (
            self.job is not None
            and self.job.code in _ENDED
            and self.run is not None
            and self.run.status == "complete"
        )


class _Submitted:
    """The jobs of one run."""

    def __init__(self, asked: Submission, out: Path) -> None:
        self._asked = asked
        self._out = out
        self._place = _place(out)
        self._cluster = clusters.connect(asked.cluster, self._place / "jobs", asked.options)
        self._shown: dict[int, str] = {}
        self._trouble = ""

    def run(self) -> int:
        """Run what is to run, join the shards, and give the exit code."""
        open_shards = [shard for shard in self._shards() if self._complete(shard) is None]
        try:
            self._begin(open_shards)
            self._wait(open_shards)
        except KeyboardInterrupt as error:
            ignore_signals()
            say(f"interrupted by {error}: the jobs are cancelled")
            self._cancel()
            return self._unfinished()
        except LlmprofError:
            ignore_signals()
            self._cancel()
            if not self._asked.jobs:  # the next try finds the name free
                shutil.rmtree(self._place)
            raise
        if any(self._complete(shard) is None for shard in self._shards()):
            return self._unfinished()
        return self._join()

    def _shards(self) -> range:
        return range(1, self._asked.shards + 1)

    def _name(self, shard: int) -> str:
        return f"shard {shard}/{self._asked.shards}"

    def _directory(self, shard: int) -> Path:
        return self._place / str(shard)

    def _attempts(self, shard: int) -> list[_Attempt]:
        paths = sorted(self._directory(shard).glob("attempt-*"), key=lambda path: int(path.name.rpartition("-")[2]))
        return [_attempt(path) for path in paths]

    def _complete(self, shard: int) -> _Attempt | None:
        """The first attempt that needs no other."""
        return next((one for one in self._attempts(shard) if one.complete), None)

    def _begin(self, shards: Sequence[int]) -> None:
        """Submit *shards*, but for those whose job of an earlier command goes on."""
        known = {shard: self._asked.jobs[shard] for shard in shards if shard in self._asked.jobs}
        states = self._cluster.states(known.values()) if known else {}
        going_on = [shard for shard in known if self._cluster.goes_on(states.get(known[shard], ""))]
        new = [shard for shard in shards if shard not in going_on]
        for shard in new:
            self._check_ended(shard)
        for shard in going_on:
            say(f"{self._name(shard)}: job {known[shard]} goes on")
        for shard in new:
            self._submit(shard)

    def _check_ended(self, shard: int) -> None:
        """Raise `ArtifactError` where *shard* still runs on this machine, in a job that is not known any more."""
        for attempt in self._attempts(shard):
            process = attempt.job.process if attempt.job and attempt.job.code is None else None
            if process is not None and process.alive():
                raise ArtifactError(
                    f"{self._name(shard)} still runs (process {process.pid}): wait for its end, or end it"
                )

    def _submit(self, shard: int) -> None:
        # What is saved while jobs wait, or before some are resumed, does not change the split.
        times = self._place.absolute() / _TIMES
        words = [
            *self._asked.arguments,
            f"--llmprof-shard={shard}/{self._asked.shards}",
            f"--llmprof-shard-times={times}",
        ]
        # submitit hides all GPUs from a job of this machine that asks for none.
        own = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES")} if self._asked.cluster == "local" else {}
        job = self._cluster.submit(run_shard, words, str(self._directory(shard)), self._asked.directory, own)
        self._asked.jobs[shard] = job
        write_json(self._place / _SUBMISSION, self._asked)
        say(f"{self._name(shard)}: job {job} submitted")

    def _wait(self, shards: Sequence[int]) -> None:
        """Wait until the jobs of *shards* have ended, and say each change."""
        left = dict.fromkeys(shards, 0.0)
        pause = _POLL_S[0]
        while left:
            states = self._states(left)
            for shard in list(left):
                job = self._asked.jobs[shard]
                state = states.get(job, "ended") if states is not None else self._shown.get(shard, "")
                if states is not None and not self._cluster.goes_on(state):
                    left[shard] = left[shard] or time.monotonic()
                    if self._settled(shard, since=left[shard]):
                        del left[shard]
                        self._tell(shard, state)
                    continue
                left[shard] = 0.0
                if state and state != self._shown.get(shard):
                    self._shown[shard] = state
                    say(f"{self._name(shard)}: job {job} {state.lower().replace('_', ' ')}")
            if left:
                time.sleep(pause)
                pause = min(1.2 * pause, _POLL_S[1])

    def _states(self, shards: Iterable[int]) -> dict[str, str] | None:
        """The states of their jobs; None where the cluster does not answer, which is said once."""
        try:
            states = dict(self._cluster.states([self._asked.jobs[shard] for shard in shards]))
        except LlmprofError as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
                say(f"WARNING: {error}; the jobs go on, and are asked for again")
            return None
        self._trouble = ""
        return states

    def _settled(self, shard: int, *, since: float) -> bool:
        """Whether what the ended job has written can be seen; in time, that it has written nothing more."""
        attempts = self._attempts(shard)
        ended_well = bool(attempts) and attempts[-1].job is not None and attempts[-1].job.code is not None
        late = time.monotonic() - since > (_LATE_S if self._asked.cluster == "slurm" else 0)
        return ended_well or late

    def _tell(self, shard: int, state: str) -> None:
        attempt = self._complete(shard)
        if attempt is None:
            say(f"{self._name(shard)}: did not complete: {self._why(shard, state)}")
            return
        assert attempt.run is not None
        say(f"{self._name(shard)}: {outcomes(attempt.run)}")

    def _why(self, shard: int, state: str) -> str:
        """Why the shard has no whole run, and where to read more."""
        job = self._asked.jobs[shard]
        log = self._cluster.log(job)
        seen = f"{cause(lines_of(log))} (log: {log})" if log.exists() else ""
        attempts = self._attempts(shard)
        last = attempts[-1].job if attempts else None
        if last is not None and last.signal is not None:
            when = ", as Slurm sends before a job's time is over" if last.signal == "SIGUSR2" else ""
            return f"job {job} was told to end ({last.signal}{when}) (log: {log})"
        code = last.code if last is not None else None
        if code is None:
            return f"job {job} ended ({one_line(state).lower().replace('_', ' ')}){seen}"
        if code in _ENDED:
            record = attempts[-1].run
            seen = f" (log: {log})"
            how = f"its run was {record.status}" if record else "it left no run: no test of it uses pytest-llmprof"
            return f"{how}{seen}"
        return f"pytest {ended(code)}{seen}"

    def _cancel(self) -> None:
        """End all jobs that go on, and wait for that."""
        jobs = list(self._asked.jobs.values())
        states = self._states(self._asked.jobs) if jobs else {}
        going_on = [job for job in jobs if states is None or self._cluster.goes_on(states.get(job, ""))]
        if not going_on:
            return
        self._cluster.cancel(going_on)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            states = self._states(self._asked.jobs)
            if states is not None and not any(self._cluster.goes_on(states.get(job, "")) for job in going_on):
                return
            time.sleep(_POLL_S[0])
        say(f"WARNING: jobs have not ended yet: {', '.join(going_on)}")

    def _unfinished(self) -> int:
        lost = [shard for shard in self._shards() if self._complete(shard) is None]
        names = ", ".join(map(str, lost))
        again = f"llmprof submit --resume {shlex.quote(os.path.relpath(self._out))}"
        if not lost:
            say(f"all shards are complete: {again} joins them")
            return NOT_MEASURED
        say(
            f"ERROR: {'shards' if len(lost) > 1 else 'shard'} {names} of {self._asked.shards} did not complete, "
            f"so there is no joined run: {again} runs {'them' if len(lost) > 1 else 'it'} again"
        )
        return max([NOT_MEASURED, *(code for code in self._codes() if code > 0)])

    def _codes(self) -> list[int]:
        """The exit code of each shard's last attempt, as far as pytest gave one."""
        last = [self._complete(shard) or next(reversed(self._attempts(shard)), None) for shard in self._shards()]
        return [one.job.code for one in last if one is not None and one.job is not None and one.job.code is not None]

    def _join(self) -> int:
        runs = [attempt.path / RUN for shard in self._shards() if (attempt := self._complete(shard)) is not None]
        record, notices = merge(runs, self._out)
        for notice in notices:
            say(f"note: {notice}")
        print(f"{count(len(runs), 'shard')}, {outcomes(record)}")
        run, place = (one_line(os.path.relpath(path), 4096) for path in (self._out, self._place))
        print(f"run directory: {run} (jobs and shards: {place})")
        return max(self._codes())


def _attempt(path: Path) -> _Attempt:
    """The attempt in *path*, as far as its files are there (yet)."""
    job, run = path / JOB, path / RUN
    return _Attempt(
        path,
        decode_record(read_bytes(job), ShardJob, submission.SCHEMA, job) if job.exists() else None,
        RunRecord.read(run) if (run / "run.json").exists() else None,
    )
