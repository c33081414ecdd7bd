"""Options that several commands have."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytest_llmprof.compare.store import STORE
from pytest_llmprof.compare.verdicts import DEFAULT_MARGIN, parse_share
from pytest_llmprof.errors import ConfigError

Subparsers = Any
"""What `add_subparsers` gives; argparse has no public name for it."""


def pytest_arguments(given: Sequence[str]) -> list[str]:
    """What argparse left for pytest (REMAINDER), without the "--" that may stand before it."""
    return list(given[1:] if given[:1] == ["--"] else given)


def add_store(parser: argparse.ArgumentParser) -> None:
    """Add `--store`."""
    parser.add_argument(
        "--store", type=Path, default=Path(STORE), metavar="DIR", help="the store of saved runs (default: %(default)s)"
    )


def add_margin(parser: argparse.ArgumentParser) -> None:
    """Add `--margin`."""
    parser.add_argument(
        "--margin",
        default=f"{100 * DEFAULT_MARGIN:g}%",
        metavar="SHARE",
        help="the smallest change that matters (default: %(default)s)",
    )


def margin_of(options: argparse.Namespace) -> float:
    """The value of `--margin`. Raises `ConfigError`."""
    return parse_share(options.margin, "--margin")


def share_of(text: str | None, where: str) -> float | None:
    """A percentage, None for None. Raises `ConfigError` naming the option *where*, also for 100 % and more."""
    if text is None:
        return None
    share = parse_share(text, where)
    if share >= 1:
        raise ConfigError(f"{where}: {text!r} is not allowed; give less than 100%")
    return share
