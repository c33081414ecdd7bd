"""Tests or stages whose outputs would overwrite each other, found before anything runs."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from pytest_llmprof.config.presets import quoted
from pytest_llmprof.config.schema import Settings

_Users = Mapping[Path, Mapping[str, tuple[Settings, list[str]]]]
"""Output directory -> node id -> settings and the kinds of output there."""


def check_collisions(owners: Sequence[tuple[str, Settings, Path, Mapping[str, Path]]]) -> dict[str, str]:
    """Find tests or stages whose enabled outputs share a directory, or lie in one that is replaced.

    *owners* holds (node id, settings, stage directory, directory of each kind of output). Returns {node id: one-line
    error} for both sides; the error ends in the overrides that give each its own directory.
    """
    users: dict[Path, dict[str, tuple[Settings, list[str]]]] = {}
    replaced: dict[Path, tuple[str, str]] = {}
    for node, settings, stage_dir, save_dirs in owners:
        replaced[Path(os.path.realpath(stage_dir))] = node, "the stage directory"
        for kind, path in save_dirs.items():
            directory = Path(os.path.realpath(path))
            users.setdefault(directory, {}).setdefault(node, (settings, []))[1].append(kind)
            if kind == "visualization":
                replaced |= {directory / name: (node, "the gallery") for name in ("pages", "predictions.md")}
    errors = _in_replaced(users, replaced)
    for directory, nodes in users.items():
        if len(nodes) > 1:
            errors = _in_shared(directory, nodes) | errors
    return errors


def _in_shared(directory: Path, nodes: Mapping[str, tuple[Settings, list[str]]]) -> dict[str, str]:
    """The error of each of *nodes*, which all write into *directory*."""
    first, second = list(nodes)[:2]
    more = f" (and {len(nodes) - 2} more)" if len(nodes) > 2 else ""
    keys = {settings.save_dir_key(kind) for settings, kinds in nodes.values() for kind in kinds}
    tests = {settings.test for settings, _ in nodes.values()}
    own = str(directory)
    if len(tests) == 1:  # the directory may name the test: suggest one that works for any test
        own = _with_part(own, tests.pop(), "${llmprof.test}")
    if own == str(directory):
        own += "/${llmprof.test}"
    if len({settings.stage for settings, _ in nodes.values()}) > 1:
        own += "/${llmprof.stage}"
    fix = " ".join(f"--llmprof-override {_shell_word(key, own)}" for key in sorted(keys))
    errors = {}
    for node in nodes:
        one, other = (first, second) if node in (first, second) else (first, node)
        errors[node] = f"{one} and {other}{more} would both write into {directory}: give each its own, {fix}"
    return errors


def _in_replaced(users: _Users, replaced: Mapping[Path, tuple[str, str]]) -> dict[str, str]:
    """Errors of outputs inside a directory that another test or stage, or any gallery, replaces."""
    errors: dict[str, str] = {}
    for directory, nodes in users.items():
        for place in (directory, *directory.parents):
            owner, what = replaced.get(place, ("", ""))
            for node, (settings, kinds) in nodes.items():
                if what and not (owner == node and what == "the stage directory"):
                    errors.setdefault(
                        node,
                        f"{settings.save_dir_named(kinds[0])} is {directory}, which lies in {place}: {what} of "
                        f"{'this test itself' if owner == node else owner} is made anew there; set another directory",
                    )
    return errors


def _shell_word(key: str, value: str) -> str:
    """An override as one word of a shell."""
    plain = re.fullmatch(r"[\w./$ {}-]*", value)
    return shlex.quote(f"{key}={value if plain else quoted(value)}")


def _with_part(path: str, part: str, by: str) -> str:
    """*path* with *by* in place of *part*, one name or several, wherever it stands between slashes."""
    return re.sub(rf"(?<![^/]){re.escape(part)}(?![^/])", by, path)
