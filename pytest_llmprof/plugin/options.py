"""Command line and ini options, and what they say about the configuration's sources."""

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

OPTIONS: tuple[tuple[str, str, str, str], ...] = (
    # name, metavar, ini type, help
    (
        "stage",
        "STAGE[,STAGE]",
        "linelist",
        "stages to run each test in, repeatable and comma separated; default: the configuration's `stages`",
    ),
    (
        "override",
        "KEY=VALUE",
        "linelist",
        "a Hydra override, repeatable: a key (measure.rounds=5) or a preset (model=deepseek_ocr)",
    ),
    ("config-dir", "DIR", "string", "your own configuration tree, laid over the packaged one"),
    (
        "run-dir",
        "DIR",
        "string",
        "this run's directory; default: llmprof-runs/<timestamp> under the rootdir. Refused when it holds a run",
    ),
)


def add_options(parser: pytest.Parser) -> None:
    """Register the group `llmprof` and its ini twins."""
    group = parser.getgroup("llmprof", "benchmark and profile document-OCR and multimodal models")
    for name, metavar, kind, text in OPTIONS:
        dest = "llmprof_" + name.replace("-", "_")
        many = kind == "linelist"
        group.addoption(
            f"--llmprof-{name}",
            dest=dest,
            action="append" if many else "store",
            default=None,
            metavar=metavar,
            help=text,
        )
        if many:
            parser.addini(dest, f"{text} (one a line)", type="linelist", default=[])
        else:
            parser.addini(dest, text, type="string", default="")
    group.addoption(
        "--llmprof-show-config",
        dest="llmprof_show_config",
        action="store_true",
        default=False,
        help="print the session's resolved configuration as YAML and exit without collecting",
    )
    parser.addini(
        CHILD_OPTIONS,
        "options of other plugins that the child process of a tool (nsys, ncu) gets too where they are given, such as "
        "--asyncio-mode (one a line); it always gets those that conftest files define",
        type="linelist",
        default=[],
    )
    group.addoption(FROZEN, dest="llmprof_frozen", default=None, help=argparse.SUPPRESS)


def given_on_command_line(config: pytest.Config) -> bool:
    """Whether any option of ours was given there (pytest's `addopts` counts as given)."""
    return any(config.getoption("llmprof_" + name.replace("-", "_")) is not None for name, _, _, _ in OPTIONS)


def given_in_ini(config: pytest.Config) -> bool:
    """Whether any ini value of ours is set."""
    return any(config.getini("llmprof_" + name.replace("-", "_")) for name, _, _, _ in OPTIONS)


def directory(config: pytest.Config, name: str) -> Path | None:
    """A directory option: from the command line relative to where pytest was started, from ini to the rootdir."""
    given = config.getoption(name)
    if given is not None:
        if not given.strip():
            from pytest_llmprof.errors import ConfigError

            raise ConfigError(f"--{name.replace('_', '-')} is empty: give a directory, or leave the option out")
        return config.invocation_params.dir / Path(given).expanduser()
    ini = str(config.getini(name))
    return config.rootpath / Path(ini).expanduser() if ini else None


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
