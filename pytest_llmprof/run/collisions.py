"""Tests or stages whose outputs would overwrite each other, found before anything runs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from pytest_llmprof.config.overrides import quoted
from pytest_llmprof.config.paths import with_part
from pytest_llmprof.config.schema import Settings
from pytest_llmprof.run.artifacts import Artifacts, output_dirs

__all__ = ["check_collisions"]


def check_collisions(owners: Sequence[tuple[str, Settings, Path]]) -> dict[str, str]:
    """Find tests or stages whose enabled outputs share a directory, or lie where another's are replaced.

    *owners* holds (node id, settings, test directory). Returns {node id: one-line error} for both sides; the
    error ends in the overrides that give each its own directory.
    """

    users: dict[Path, dict[str, tuple[Settings, list[str]]]] = {}
    replaced: dict[Path, tuple[str, str]] = {}
    for node, settings, test_dir in owners:
        artifacts = Artifacts(test_dir)
        replaced[artifacts.out_dir(settings.stage).resolve()] = node, "the stage directory"
        dirs = output_dirs(settings, artifacts)
        for kind in ("prediction", "visualization"):
            directory = getattr(dirs, kind)
            if directory is not None:
                users.setdefault(directory.resolve(), {}).setdefault(node, (settings, []))[1].append(kind)
        if dirs.visualization is not None:
            for name in ("pages", "predictions.md"):
                replaced[dirs.visualization.resolve() / name] = node, "the gallery"
    errors = _in_replaced(users, replaced)
    for directory, nodes in users.items():
        if len(nodes) < 2:
            continue
        first, second = list(nodes)[:2]
        more = f" (and {len(nodes) - 2} more)" if len(nodes) > 2 else ""
        keys = {settings.save_dir_key(kind) for settings, kinds in nodes.values() for kind in kinds}
        stages = {settings.stage for settings, _ in nodes.values()}
        own, tests = str(directory), {settings.test for settings, _ in nodes.values()}
        if len(tests) == 1:  # stages of one test meet, maybe in a directory that names it: any test's is to be pasted
            own = with_part(own, tests.pop(), "${llmprof.test}")
        if own == str(directory):
            own += "/${llmprof.test}"
        if len(stages) > 1:
            own += "/${llmprof.stage}"
        fix = " ".join(f"--llmprof-override {_pasteable(key, own)}" for key in sorted(keys))
        for node in nodes:
            one, other = (first, second) if node in (first, second) else (first, node)
            errors.setdefault(
                node, f"{one} and {other}{more} would both write into {directory}: give each its own, {fix}"
            )
    return errors


def _in_replaced(
    users: Mapping[Path, Mapping[str, tuple[Settings, list[str]]]], replaced: Mapping[Path, tuple[str, str]]
) -> dict[str, str]:
    """Outputs inside what another test or stage makes anew, or inside any gallery's pages, by node id."""
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


def _pasteable(key: str, value: str) -> str:
    """An override as one word of a shell."""

    plain = re.fullmatch(r"[\w./$ {}-]*", value)
    return shlex.quote(f"{key}={value if plain else quoted(value)}")
