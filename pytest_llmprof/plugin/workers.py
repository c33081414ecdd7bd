"""Workers of pytest-xdist: the GPU and the threads of each, and which tests stay together in one."""

from __future__ import annotations

import importlib.util
import os
import shlex
import sys
from collections.abc import Callable, Generator, Hashable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llmprof.errors import ConfigError
from pytest_llmprof.plugin import options
from pytest_llmprof.plugin.items import ITEM
from pytest_llmprof.text.escape import visible

if TYPE_CHECKING:
    from pytest_llmprof.config.schema import Settings
    from pytest_llmprof.measure.workers import WorkerShare
    from pytest_llmprof.plugin.shared import SharedState

CHANNEL = "llmprof_groups"
"""Under this name a worker finds the channel for its groups in `workerinput`."""


class WorkerHooks:
    """In the process that starts workers."""

    def __init__(self, shared: SharedState) -> None:
        self._shared = shared
        self._config = shared.config
        self._local: Sequence[Any] = ()
        """What execnet knows of each worker on this host."""
        self.each = False
        """Whether several workers run the same tests."""
        self.note: str | None = None
        """Why tests with one model may be spread over workers against the user's wish."""
        self.grouped = self._group_by_model()
        """Whether each test of ours belongs to a group of tests with the same model."""
        self._groups: dict[str, str] = {}
        """Node id -> group, as the workers send it."""

    @pytest.hookimpl(optionalhook=True, tryfirst=True)
    def pytest_xdist_setupnodes(self, specs: Sequence[Any]) -> None:
        """Give each worker of this host its share. Another host's list of GPUs is its own."""
        self.each = self._config.option.dist == "each" and len(specs) > 1
        self._local = [spec for spec in specs if spec.popen and not spec.via]
        if not self._shared.configured:
            return  # no test of ours may be here: the workers find out, and call `take_share`
        with options.usage_errors():
            found = worker_shares(self._config, self._shared.session.composer.session(), len(self._local))
        for spec, share in zip(self._local, found, strict=True):
            spec.env.update(share.variables)

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionstart(self) -> Generator[None, object, object]:
        """Say in one line that the machine or the interpreter of a worker is not there. pytest-xdist connects while
        this runs."""
        try:
            return (yield)
        except _host_not_found() as error:
            raise pytest.UsageError(
                f"--tx: ssh does not reach {visible(str(error))}, for the reason that it gives above; "
                "it must connect without asking for a password"
            ) from None
        except OSError as error:
            if not any(spec.python and error.filename in shlex.split(spec.python)[:1] for spec in self._local):
                raise
            why = str(error.strerror).lower()
            raise pytest.UsageError(f"--tx: cannot start {visible(str(error.filename))}: {why}") from None

    def _group_by_model(self) -> bool:
        """Whether tests are grouped by model: where `--dist loadgroup` was chosen, or nothing was, which it then is."""
        if not (self._shared.configured and self._shared.controller):
            return False
        option, given = self._config.option, self._config.known_args_namespace
        if option.dist == "load" and given.dist == "no" and not given.distload:
            if importlib.util.find_spec("xdist.scheduler.loadgroup") is None:
                self.note = (
                    "tests with one model may run in several workers: this pytest-xdist is older than --dist=loadgroup "
                    "(2.5 and later have it)"
                )
            else:
                option.dist = "loadgroup"
        return bool(option.dist == "loadgroup")

    @pytest.hookimpl(optionalhook=True, trylast=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Any:
        if not self.grouped:
            return None
        from pytest_llmprof.plugin.scheduling import ModelGroupScheduling

        return ModelGroupScheduling(config, log, self._groups)

    def place(self, node: Any) -> tuple[int, int] | None:
        """The number of the worker *node* and how many there are on this host, where it takes its share by itself."""
        number = next((place for place, spec in enumerate(self._local) if spec is node.gateway.spec), None)
        return None if number is None or self._shared.configured else (number, len(self._local))

    def connect(self, node: Any) -> Any:
        """A channel on which the worker *node* sends the groups. They are here before xdist hears of its tests."""
        channel = node.gateway.newchannel()
        channel.setcallback(self._groups.update)
        return channel


def _host_not_found() -> type[Exception] | tuple[()]:
    """What execnet raises where ssh ends before Python answers; nothing where pytest-xdist is not there."""
    found: type[Exception] | tuple[()] = getattr(sys.modules.get("execnet"), "HostNotFound", ())
    return found


def auto_workers(shared: SharedState) -> int | None:
    """How many workers `-n auto` starts: one for each GPU where the session's model runs on one; None elsewhere."""
    chosen = "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ or shared.config.option.numprocesses != "auto"
    if not shared.configured or chosen:
        return None
    from pytest_llmprof.measure.visible_gpus import on_gpu, visible_gpus

    gpus = visible_gpus(os.environ)
    return len(gpus.entries) or None if on_gpu(shared.session.composer.session().model.device, gpus) else None


def worker_shares(config: pytest.Config, settings: Settings, count: int) -> list[WorkerShare]:
    """The shares of *count* workers on this host. Raises `ConfigError` where there are not enough GPUs."""
    from pytest_llmprof.measure.host import usable_processors
    from pytest_llmprof.measure.visible_gpus import VARIABLE, on_gpu, visible_gpus
    from pytest_llmprof.measure.workers import shares

    gpus = visible_gpus(os.environ)
    if count and on_gpu(settings.model.device, gpus):
        device = settings.model.device
        where = f"model.device={device}{settings.where('model.device')}"
        if ":" in device:
            raise ConfigError(f"{where}: a worker sees its own GPU alone, so write model.device=cuda")
        if not gpus.entries and count > 1:
            if (given := os.environ.get(VARIABLE)) is not None:
                raise ConfigError(f"{where}, but {VARIABLE}={given} leaves no GPU to {count} workers")
            raise ConfigError(
                f"{where} and {count} workers, but no GPU is found by the driver (NVML) or nvidia-smi: name those to "
                f"use in {VARIABLE}, or write model.device=cpu"
            )
        if count > len(gpus.entries) > 0 and not options.share_gpu(config):
            raise ConfigError(
                f"{count} workers, but {_number(len(gpus.entries), 'GPU')} ({gpus}): use -n {len(gpus.entries)}, or "
                "--llmprof-share-gpu, which marks their figures as shared"
            )
    return shares(count, gpus.entries, usable_processors(), os.environ)


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def check_spread(shared: SharedState) -> None:
    """In a worker that has a test of ours. Raises `ConfigError` where other workers run the same tests."""
    if shared.from_controller["each"]:
        raise ConfigError(
            "--dist each runs each test in every worker, and one run holds it once: leave it out, or start pytest once "
            "for each, with a run directory of its own"
        )


def take_share(shared: SharedState) -> None:
    """In a worker of a session that does not configure us, once a test of ours is found: take this worker's share.

    Raises `ConfigError` where there are not enough GPUs, or CUDA has been started on another one.
    """
    place = shared.from_controller.get("place")
    if place is None:
        return
    number, count = place
    share = worker_shares(shared.config, shared.session.composer.session(), count)[number]
    torch = sys.modules.get("torch")
    if torch is not None and share.gpu is not None and torch.cuda.is_initialized():
        raise ConfigError(
            "a conftest or a test module has started CUDA before this worker has its GPU: give an option of llmprof, "
            "such as --llmprof-stage, and workers get their GPUs before anything is imported"
        )
    os.environ.update(share.variables)
    if torch is not None and share.threads is not None:
        torch.set_num_threads(share.threads)  # it has read the variable


def send_groups(items: Sequence[pytest.Item], config: pytest.Config) -> None:
    """In a worker: tell the scheduler what stays together: tests with a mark `xdist_group` by its name, other tests of
    ours by model and engine. All workers come to the same groups."""
    channel = config.workerinput.get(CHANNEL)  # type: ignore[attr-defined]
    if channel is None:
        return
    marked = {item: "_".join(sorted(names)) for item in items if (names := _marked_groups(item))}
    ours = {item: key for item in items if item not in marked and (key := _model_of(item)) is not None}
    alone = len(items) - len(marked) - len(ours)
    workers = config.workerinput["workercount"]  # type: ignore[attr-defined]
    groups = {item.nodeid: f"group {name}" for item, name in marked.items()}
    for number, members in enumerate(split(list(ours), ours.__getitem__, workers - len(set(marked.values())) - alone)):
        groups |= {item.nodeid: f"model {number}" for item in members}
    channel.send(groups)


def _marked_groups(item: pytest.Item) -> set[str]:
    """The groups of its `xdist_group` marks, as xdist reads them."""
    return {
        str(mark.args[0] if mark.args else mark.kwargs.get("name", "default"))
        for mark in item.iter_markers("xdist_group")
    }


def _model_of(item: pytest.Item) -> Hashable | None:
    """Equal for tests that one loaded model serves; None for a test that is not ours."""
    from pytest_llmprof.run.model_cache import model_key

    state = item.stash.get(ITEM, None)
    return None if state is None or state.settings is None else model_key(state.settings)


def split(items: Sequence[Any], key: Callable[[Any], Hashable], least: int) -> list[list[Any]]:
    """*items* in groups with the same *key*; where these are fewer than *least*, the largest is cut into two of
    neighbours, and so on while one has two."""
    by_key: dict[Hashable, list[Any]] = {}
    for item in items:
        by_key.setdefault(key(item), []).append(item)
    parts = dict.fromkeys(by_key, 1)

    def size(one: Hashable) -> float:
        return len(by_key[one]) / parts[one]

    while parts and sum(parts.values()) < least:
        largest = max(parts, key=size)
        if size(largest) <= 1:
            break
        parts[largest] += 1
    return [part for one, members in by_key.items() for part in _contiguous(members, parts[one])]


def _contiguous(members: Sequence[Any], parts: int) -> list[list[Any]]:
    """*members* in *parts* of equal length, give or take one."""
    ends = [len(members) * part // parts for part in range(parts + 1)]
    return [list(members[begin:end]) for begin, end in pairwise(ends)]
