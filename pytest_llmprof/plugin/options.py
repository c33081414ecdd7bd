"""Options of the command line and of ini files, and the sources of the configuration that they give."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_llmprof.config.compose import ConfigSources

__all__ = [
    "CHILD_OPTIONS",
    "FROZEN",
    "MARKERS",
    "OPTIONS",
    "add_options",
    "columns",
    "directory",
    "given_in_ini",
    "given_on_command_line",
    "sources",
]

FROZEN = "--llmprof-frozen"
"""Internal: the file of the configuration that a stage gives to the child process it starts."""
CHILD_OPTIONS = "llmprof_child_options"
"""The ini key of options to pass on to such a child."""

MARKERS = (
    "llmprof(overrides=['key=value', ...]): Hydra overrides for this test alone; "
    "module < class < function < parameter, all below the command line.",
    'llmprof_gate(cer="<=0.05", ttft_ms="<=200", ...): limits on the test\'s own figures; the test fails where one '
    "is broken. A figure that is not applicable (no truth, random weights, a CPU) does not fail.",
)

OPTIONS = {
    "llmprof_stage": (
        "STAGE[,STAGE]",
        True,
        "stages to run each test in, repeatable and comma separated; default: the configuration's `stages`",
    ),
    "llmprof_override": (
        "KEY=VALUE",
        True,
        "a Hydra override, repeatable: a key (measure.rounds=5) or a preset (model=deepseek_ocr)",
    ),
    "llmprof_config_dir": ("DIR", False, "your own configuration tree, laid over the packaged one"),
    "llmprof_run_dir": (
        "DIR",
        False,
        "this run's directory; default: llmprof-runs/<timestamp> under the rootdir. Refused when it holds a run",
    ),
    "llmprof_columns": (
        "METRIC[,METRIC]",
        True,
        "metrics in the columns of the summary's table, repeatable and comma separated (ttft_ms,tpot_ms,decode_ms,cer)",
    ),
}
"""Options with an ini twin, by ini key: metavar, whether it is a list, help."""


def add_options(parser: pytest.Parser) -> None:
    """Register the group `llmprof` and its ini twins."""
    group = parser.getgroup("llmprof", "benchmark and profile document-OCR and multimodal models")
    for key, (metavar, many, text) in OPTIONS.items():
        action = "append" if many else "store"
        group.addoption(_flag(key), dest=key, action=action, default=None, metavar=metavar, help=text)
        if many:
            parser.addini(key, f"{text} (one a line)", type="linelist", default=[])
        else:
            parser.addini(key, text, type="string", default="")
    group.addoption(
        "--llmprof-show-config",
        dest="llmprof_show_config",
        action="store_true",
        default=False,
        help="print the session's resolved configuration as YAML and exit without collecting",
    )
    group.addoption(FROZEN, dest="llmprof_frozen", default=None, help=argparse.SUPPRESS)
    parser.addini(
        CHILD_OPTIONS,
        "options of other plugins that a child process under a profiling tool gets too where they are given, such as "
        "--asyncio-mode (one a line); it always gets those that conftest files define",
        type="linelist",
        default=[],
    )


def _flag(key: str) -> str:
    return "--" + key.replace("_", "-")


def given_on_command_line(config: pytest.Config) -> bool:
    """Whether any option with an ini twin was given there (pytest's `addopts` counts as given)."""
    return any(config.getoption(key) is not None for key in OPTIONS)


def given_in_ini(config: pytest.Config) -> bool:
    """Whether any of the ini twins is set."""
    return any(config.getini(key) for key in OPTIONS)


def directory(config: pytest.Config, key: str) -> Path | None:
    """A directory: on the command line relative to where pytest was started, in an ini file to the rootdir."""
    given = config.getoption(key)
    if given is not None:
        if not given.strip():
            from pytest_llmprof.errors import ConfigError

            raise ConfigError(f"{_flag(key)} is empty: give a directory, or leave the option out")
        return config.invocation_params.dir / Path(given).expanduser()
    ini = str(config.getini(key))
    return config.rootpath / Path(ini).expanduser() if ini else None


def columns(config: pytest.Config) -> list[str] | None:
    """The metrics that the summary's table is to show; None where nobody chose."""
    given = config.getoption("llmprof_columns") or config.getini("llmprof_columns") or ()
    names = [name.strip() for value in given for name in str(value).split(",") if name.strip()]
    return list(dict.fromkeys(names)) or None


def sources(config: pytest.Config) -> ConfigSources:
    """Where the session's configuration comes from."""
    from pytest_llmprof.config.compose import ConfigSources

    stages = config.getoption("llmprof_stage")
    ini_stages = config.getini("llmprof_stage")
    return ConfigSources(
        config_dir=directory(config, "llmprof_config_dir"),
        ini_overrides=tuple(map(str, config.getini("llmprof_override"))),  # TOML may hold other things
        cli_overrides=tuple(config.getoption("llmprof_override") or ()),
        stages=tuple(stages) if stages is not None else tuple(ini_stages) or None,
        stages_from_ini=stages is None,
        invocation_dir=config.invocation_params.dir,
        rootdir=config.rootpath,
        frozen=Path(config.getoption("llmprof_frozen")) if config.getoption("llmprof_frozen") else None,
    )
