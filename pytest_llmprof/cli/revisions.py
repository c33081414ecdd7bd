"""Git revisions as work trees, and the interpreter that runs each."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_llmprof.cli.processes import run_logged
from pytest_llmprof.compare.comparable import some
from pytest_llmprof.errors import ArtifactError, ConfigError, nearest
from pytest_llmprof.text.escape import one_line


@dataclass(frozen=True)
class Repository:
    """The git repository that the command was started in."""

    top: Path
    prefix: Path
    """The directory of the command below `top`."""

    @classmethod
    def here(cls, option: str) -> Repository:
        """That of the current directory. Raises `ConfigError` naming *option* without git or outside of one."""
        if shutil.which("git") is None:
            raise ConfigError(f"{option}: there is no git on PATH")
        done = _git(Path.cwd(), "rev-parse", "--show-toplevel", "--show-prefix")
        if done.returncode:
            raise ConfigError(f"{option}: {Path.cwd()} is not in a git repository ({_last(done.stderr)})")
        top, prefix = done.stdout.split("\n")[:2]
        return cls(Path(top), Path(prefix))

    def commit(self, revision: str, option: str) -> str:
        """The full id of *revision*. Raises `ConfigError` naming *option* for one that is not there."""
        done = _git(self.top, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
        if done.returncode:
            names = _git(self.top, "for-each-ref", "--format=%(refname:short)").stdout.split()
            shallow = _git(self.top, "rev-parse", "--is-shallow-repository").stdout.strip() == "true"
            hint = "; this clone is shallow: git fetch --unshallow (in a CI job: fetch all history)" if shallow else ""
            raise ConfigError(f"{option}: unknown revision {revision!r}{nearest(revision, names)}{hint}")
        return done.stdout.strip()

    def changes(self) -> int:
        """Files with changes that are not committed, new ones included."""
        return len(_git(self.top, "status", "--porcelain").stdout.splitlines())

    def add_worktree(self, path: Path, commit: str, option: str) -> Path:
        """Check *commit* out into *path*. Gives the directory in it that corresponds to the current one.

        Raises `ArtifactError` where that cannot be, `ConfigError` where the revision has no such directory.
        """
        done = _git(self.top, "-c", "core.hooksPath=/dev/null", "worktree", "add", "--detach", str(path), commit)
        if done.returncode:
            raise ArtifactError(f"{option}: git worktree add failed: {_last(done.stderr)}")
        here = path / self.prefix
        if not here.is_dir():
            raise ConfigError(f"{option}: revision {commit[:12]} has no directory {self.prefix}")
        return here

    def remove_worktree(self, path: Path) -> None:
        """Remove what `add_worktree` made, also half of it."""
        _git(self.top, "worktree", "remove", "--force", "--force", str(path))
        shutil.rmtree(path, ignore_errors=True)
        _git(self.top, "worktree", "prune")


def _git(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", "-C", str(directory), *arguments], capture_output=True, text=True, errors="replace", check=False
    )


def _last(text: str) -> str:
    return one_line(next((line for line in reversed(text.splitlines()) if line.strip()), "git said nothing"))


def with_path(tree: Path) -> dict[str, str]:
    """This process's environment with the packages of *tree* first on the import path."""
    places = [str(path) for path in (tree / "src", tree) if path.is_dir()]
    known = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*places, *([known] if known else [])])}


_PROBE = """
import importlib.metadata, importlib.util, json, sys
wanted = json.loads(sys.argv[1])
missing, elsewhere = [], {}
for name in ("pytest", "pytest_llmprof"):
    if importlib.util.find_spec(name) is None:
        missing.append(name)
for name in wanted["packages"]:
    origin = getattr(importlib.util.find_spec(name), "origin", None)
    if origin is None or not origin.startswith(wanted["tree"]):
        elsewhere[name] = origin
try:
    from packaging.requirements import Requirement
except ImportError:
    missing.append("packaging")
else:
    for text in wanted["requirements"]:
        one = Requirement(text)
        if one.marker is not None and not one.marker.evaluate():
            continue
        try:
            there = one.specifier.contains(importlib.metadata.version(one.name), prereleases=True)
        except importlib.metadata.PackageNotFoundError:
            there = False
        if not there:
            missing.append(text)
print(json.dumps({"missing": missing, "elsewhere": elsewhere}))
"""


@dataclass(frozen=True)
class Found:
    """What an interpreter has of what a work tree needs."""

    missing: list[str]
    """Packages and requirements that are not there."""
    elsewhere: dict[str, str | None]
    """Packages of the tree that it would import from another place."""

    @property
    def lacking(self) -> str:
        """What keeps the interpreter from running the tree, for one line; empty where nothing does."""
        if self.missing:
            return f"{some(self.missing)} {'is' if len(self.missing) == 1 else 'are'} missing"
        for name, origin in self.elsewhere.items():
            return f"{name} would be imported from {origin}, not from the work tree"
        return ""


def probe(python: str, cwd: Path, environment: Mapping[str, str], tree: Path | None, option: str) -> Found:
    """Ask *python* for pytest, pytest-llmprof, and where *tree* is given its requirements and its own packages.

    Raises `ConfigError` naming *option* where the interpreter cannot be asked.
    """
    wanted = {
        "requirements": _requirements(tree, option) if tree else [],
        "packages": _packages(tree) if tree else [],
        "tree": f"{tree.resolve()}{os.sep}" if tree else "",
    }
    try:
        done = subprocess.run(
            [python, "-c", _PROBE, json.dumps(wanted)],
            cwd=cwd,
            env=dict(environment),
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise ConfigError(f"{option}: {python} cannot be run: {error.strerror}") from error
    if done.returncode:
        raise ConfigError(f"{option}: {python} cannot be asked for its packages: {_last(done.stderr)}")
    found = json.loads(done.stdout.splitlines()[-1])
    return Found(found["missing"], found["elsewhere"])


def _requirements(tree: Path, option: str) -> list[str]:
    path = tree / "pyproject.toml"
    if not path.exists():
        return []
    try:
        project = tomllib.loads(path.read_text(encoding="utf-8")).get("project", {})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{option}: the revision's pyproject.toml cannot be read: {one_line(str(error))}") from error
    found = project.get("dependencies", []) if isinstance(project, dict) else []
    return [str(one) for one in found]


def _packages(tree: Path) -> list[str]:
    places = [tree / "src", tree]
    found = [path.parent.name for place in places if place.is_dir() for path in sorted(place.glob("*/__init__.py"))]
    return [name for name in dict.fromkeys(found) if name.isidentifier()]


def make_environment(place: Path, tree: Path, log: Path, option: str) -> str:
    """Make a virtual environment at *place* with *tree* installed in it. Gives its interpreter.

    Raises `ConfigError` naming *option* where the revision does not install.
    """
    python = place / "bin" / "python"
    steps = (
        [sys.executable, "-m", "venv", str(place)],
        [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--editable", str(tree)],
    )
    for command in steps:
        if run_logged(command, log, cwd=tree, environment=os.environ):
            lines = log.read_bytes().decode("utf-8", "replace").splitlines()
            errors = [line.strip().removeprefix("ERROR: ") for line in lines if line.strip().startswith("ERROR:")]
            cause = one_line((errors or lines or ["it said nothing"])[-1])
            raise ConfigError(f"{option}: the revision does not install: {cause} (log: {log})")
    return str(python)
