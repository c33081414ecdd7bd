"""Where the packaged configuration tree is, and how configured paths are resolved."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest_llmprof

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def conf_dir(package: Path | None = None) -> Path:
    """The canonical `conf/` tree: the checkout's where the package runs from one, else the package's own.

    The checkout comes first, because an editable install can leave an old copy of the tree in site-packages.
    It is known by its pyproject.toml, so that another `conf/` beside an installed package is not taken.
    *package* is the package's directory (for tests).
    """
    package = package or Path(pytest_llmprof.__file__).resolve().parent
    checkout = package.parent
    project = checkout / "pyproject.toml"
    if (
        (checkout / "conf" / "config.yaml").is_file()
        and project.is_file()
        and 'name = "pytest-llmprof"' in project.read_text(encoding="utf-8")
    ):
        return checkout / "conf"
    return package / "conf"


def absolute(value: str, base: Path) -> Path:
    """*value* as an absolute path: ``~`` expanded, relative to *base*. Links stay, except under ``..``."""
    path = Path(os.path.expanduser(value))  # unlike Path.expanduser, leaves the home of an unknown user alone
    path = base / path
    return path.resolve() if ".." in path.parts else path


def is_hub_id(value: str) -> bool:
    """Whether *value* looks like a hub id, `name` or `org/name`."""
    return _HUB_ID.fullmatch(value) is not None


def is_local(value: str, base: Path) -> bool:
    """Whether *value* names a local directory: it is written as a path, or exists below *base*."""
    return value in (".", "..") or value.startswith(("./", "../", "/", "~")) or Path(base, value).exists()
