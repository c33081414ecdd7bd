"""Options of the command line and of ini files, and the sources of the configuration that they give."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_llmprof.config.compose import ConfigSources

FROZEN = "--llmprof-frozen"
"""Internal: the file of the configuration that a stage gives to the child process it starts."""
SHARD_TIMES = "--llmprof-shard-times"
"""Internal: the file in which the shards of one submission find the times of tests; the first of them writes it."""
DOCTOR = "--llmprof-doctor"
"""Internal: where `llmprof doctor` wants its report."""
CHILD_OPTIONS = "llmprof_child_options"
"""The ini key of options to pass on to such a child."""

MARKERS = (
    "llmprof(overrides=['key=value', ...]): Hydra overrides for this test alone; "
    "module < class < function < parameter, all below the command line.",
    'llmprof_gate(cer="<=0.05", slower={"tpot_ms": "2%"}, cer_worse="0.005", ...): limits on the test\'s own metrics, '
    "and on how much worse than in the baseline of --llmprof-compare they may be; the test fails where one is broken. "
    "A metric that is not applicable (no truth, random weights, a CPU) or not measured does not fail.",
)

_LISTS = {
    "llmprof_stage": ("STAGE[,STAGE]", "stages to run each test in, comma separated; default: the key `stages`"),
    "llmprof_override": ("KEY=VALUE", "a Hydra override: a key (measure.rounds=5) or a preset (model=deepseek_ocr)"),
    "llmprof_columns": ("METRIC[,METRIC]", "metrics in the summary's table, comma separated (ttft_ms,tpot_ms,cer)"),
}
_DIRECTORIES = {
    "llmprof_config_dir": "your own configuration tree, laid over the packaged one",
    "llmprof_run_dir": "the directory of this run, refused if it holds a run; default: llmprof-runs/<timestamp> "
    "under the rootdir",
}
_BASELINES = {
    "llmprof_save": ("NAME", "save this run in the store under NAME once it has ended"),
    "llmprof_compare": ("NAME|RUN", "compare this run with a baseline: a name in the store, a run directory or a file"),
    "llmprof_store": ("DIR", "the store of saved runs; default: .llmprof under the rootdir"),
}
KEYS = (*_LISTS, *_DIRECTORIES, *_BASELINES)
"""Options with an ini twin that are checked before tests are collected."""
_STRICT = (
    "fail a test, instead of skipping it, if this machine lacks what its engine needs; and fail a gate whose metric is "
    "not applicable or not measured"
)


_SHARE_GPU = (
    "let workers of pytest-xdist share a GPU if there are more workers than GPUs; their times are marked as shared, "
    "and gates on times and energy are not measured"
)


def add_options(parser: pytest.Parser) -> None:
    """Register the group `llmprof` and its ini twins."""
    group = parser.getgroup("llmprof", "benchmark and profile document-OCR and multimodal models")
    for key, (metavar, text) in _LISTS.items():
        group.addoption(_flag(key), dest=key, action="append", metavar=metavar, help=f"{text}; repeatable")
        parser.addini(key, f"{text} (one a line)", type="linelist", default=[])
    for key, text in _DIRECTORIES.items():
        group.addoption(_flag(key), dest=key, metavar="DIR", help=text)
        parser.addini(key, text, type="string", default="")
    for key, (metavar, text) in _BASELINES.items():
        group.addoption(_flag(key), dest=key, metavar=metavar, help=text)
        parser.addini(key, text, type="string", default="")
    shard = "run one of N parts of the suite (2/4 is the second of four), balanced by the times of earlier runs"
    group.addoption("--llmprof-shard", dest="llmprof_shard", metavar="I/N", help=shard)
    durations = (
        "where --llmprof-shard takes the times of tests from: a name in the store or a run; "
        "default: the newest saved runs; if there are none, each shard gets the same number of tests"
    )
    group.addoption("--llmprof-durations", dest="llmprof_durations", metavar="NAME|RUN", help=durations)
    group.addoption("--llmprof-strict", dest="llmprof_strict", action="store_true", help=_STRICT)
    parser.addini("llmprof_strict", _STRICT, type="bool", default=False)
    group.addoption("--llmprof-share-gpu", dest="llmprof_share_gpu", action="store_true", help=_SHARE_GPU)
    parser.addini("llmprof_share_gpu", _SHARE_GPU, type="bool", default=False)
    show = "print the session's resolved configuration as YAML and exit without collecting"
    group.addoption("--llmprof-show-config", dest="llmprof_show_config", action="store_true", help=show)
    group.addoption(FROZEN, dest="llmprof_frozen", default=None, help=argparse.SUPPRESS)
    group.addoption(SHARD_TIMES, dest="llmprof_shard_times", default=None, help=argparse.SUPPRESS)
    group.addoption(DOCTOR, dest="llmprof_doctor", default=None, help=argparse.SUPPRESS)
    parser.addini(
        CHILD_OPTIONS,
        "options of other plugins that a child process under a profiling tool gets too where they are given, such as "
        "--asyncio-mode (one a line); it always gets those that conftest files define",
        type="linelist",
        default=[],
    )


def _flag(key: str) -> str:
    return "--" + key.replace("_", "-")


def configured(config: pytest.Config, *, ini: bool) -> bool:
    """Whether the configuration was set on the command line (`addopts` included), or with *ini* in the ini file."""
    return any(config.getoption(key) is not None or (ini and config.getini(key)) for key in KEYS)


def configured_early(config: pytest.Config) -> bool:
    """As `configured` with the ini file, before pytest has parsed the command line for good."""
    given = vars(config.known_args_namespace)
    return any(given.get(key) is not None or config.getini(key) for key in KEYS)


def check_ini(config: pytest.Config) -> None:
    """Refuse ini keys of ours that do not exist, which pytest at most warns of, and values of another type, which it
    says when they are read, without the key. Raises `ConfigError`."""
    from pytest_llmprof.errors import ConfigError, nearest

    known = sorted(name for name in config._parser._inidict if name.startswith("llmprof_"))
    on_command_line = {text.partition("=")[0].strip() for text in config.option.override_ini or ()}
    # Older pytest (seen with 8.1) does not count those of -o as unknown.
    unknown = on_command_line.difference(config._parser._inidict).union(config._get_unknown_ini_keys())
    for key in sorted(unknown):
        if key.lower().startswith("llmprof"):
            where = "-o" if key in on_command_line or config.inipath is None else config.inipath.name
            raise ConfigError(
                f"unknown ini key {key} in {where}{nearest(key.lower(), known)}; allowed: {', '.join(known)}"
            )
    for key in known:
        try:
            config.getini(key)
        except (pytest.UsageError, ValueError, TypeError) as error:  # the first by newer pytest (seen with 9.2)
            switch = "; it must be true or false" if key in ("llmprof_strict", "llmprof_share_gpu") else ""
            raise ConfigError(f"the ini value {key} cannot be read: {error}{switch}") from error


def strict(config: pytest.Config) -> bool:
    """Whether a test fails where something is missing."""
    return bool(config.getoption("llmprof_strict") or config.getini("llmprof_strict"))


def share_gpu(config: pytest.Config) -> bool:
    """Whether several workers may use one GPU."""
    return bool(config.getoption("llmprof_share_gpu") or config.getini("llmprof_share_gpu"))


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turn errors of ours into pytest's usage errors: one line, exit code 4."""
    from pytest_llmprof.errors import LlmprofError
    from pytest_llmprof.text.escape import visible

    try:
        yield
    except LlmprofError as error:
        raise pytest.UsageError(visible(str(error))) from None


def named(config: pytest.Config, key: str) -> str:
    """The name of the option, or of the ini value that is taken where it is not given."""
    return key if config.getoption(key) is None else _flag(key)


def directory(config: pytest.Config, key: str) -> Path | None:
    """A directory: on the command line relative to where pytest was started, in an ini file to the rootdir."""
    given, ini = config.getoption(key), str(config.getini(key))
    if given is None and not ini:
        return None
    from pytest_llmprof.config.paths import why_unusable
    from pytest_llmprof.errors import ConfigError
    from pytest_llmprof.text.escape import shorten

    name, base = named(config, key), config.rootpath if given is None else config.invocation_params.dir
    text = ini if given is None else given
    if not text.strip():
        raise ConfigError(f"{name} is empty: give a directory, or leave the option out")
    path = base / os.path.expanduser(text)
    if why := why_unusable(path):
        raise ConfigError(f"{name}={shorten(text, 300)}: {why}")
    return path


def baseline(config: pytest.Config, key: str) -> tuple[str, str, Path] | None:
    """The value of `llmprof_save` or `llmprof_compare`, where it was set, and the directory of its relative paths."""
    given = config.getoption(key)
    if given is not None:
        if not given.strip():
            from pytest_llmprof.errors import ConfigError

            raise ConfigError(f"{_flag(key)} is empty: give a name, or leave the option out")
        return given, _flag(key), config.invocation_params.dir
    ini = str(config.getini(key)).strip()
    return (ini, f"the ini value {key}", config.rootpath) if ini else None


def columns(config: pytest.Config) -> tuple[list[str] | None, str]:
    """The metrics that the summary's table is to show (None where nobody chose), and where they were chosen."""
    option = config.getoption("llmprof_columns")
    given = option or config.getini("llmprof_columns")
    names = [name.strip() for value in given for name in str(value).split(",") if name.strip()]
    return list(dict.fromkeys(names)) or None, "--llmprof-columns" if option else "the ini value llmprof_columns"


def sources(config: pytest.Config) -> ConfigSources:
    """Where the session's configuration comes from."""
    from pytest_llmprof.config.compose import ConfigSources

    stages = config.getoption("llmprof_stage")
    ini_stages = config.getini("llmprof_stage")
    return ConfigSources(
        config_dir=directory(config, "llmprof_config_dir"),
        config_dir_named=named(config, "llmprof_config_dir"),
        ini_overrides=tuple(map(str, config.getini("llmprof_override"))),  # TOML may hold other things
        cli_overrides=tuple(config.getoption("llmprof_override") or ()),
        stages=tuple(stages) if stages is not None else tuple(ini_stages) or None,
        stages_from_ini=stages is None,
        invocation_dir=config.invocation_params.dir,
        rootdir=config.rootpath,
        frozen=Path(config.getoption("llmprof_frozen")) if config.getoption("llmprof_frozen") else None,
    )
