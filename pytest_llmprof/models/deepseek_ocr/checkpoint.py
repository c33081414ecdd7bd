"""A checkpoint on disk: find and check its files before anything is loaded, and digest its weights."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_llmprof.errors import ModelError

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_WANTED = ("config.json", "tokenizer.json", "*.safetensors", _INDEX)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_CHUNK = 1 << 20
_WHOLE = 512 << 20
"""Checkpoints up to this many bytes are hashed whole."""


@dataclass(frozen=True)
class Checkpoint:
    """The files of a checkpoint directory."""

    directory: Path
    config: dict[str, Any]
    weights: tuple[Path, ...]
    keys: frozenset[str]
    """Names of all tensors in `weights`."""
    tokenizer: Path | None


def resolve(path: str, revision: str | None) -> Path:
    """Return the directory of *path* (a directory or a hub id), downloaded where needed.

    Only config, tokenizer and safetensors files are downloaded, never code. Raises `ModelError`.
    """
    directory = Path(path).expanduser()
    if directory.is_dir():
        if revision is not None:
            raise ModelError(f"model.revision={revision} is for hub ids; model.path={path} is a directory")
        return directory
    if directory.exists() or not _HUB_ID.fullmatch(path):
        what = "is a file" if directory.exists() else "does not exist"
        raise ModelError(f"model.path={path} {what}; give a checkpoint's directory or a hub id (owner/name)")
    return _download(path, revision)


def _download(repo: str, revision: str | None) -> Path:
    from huggingface_hub import errors, snapshot_download

    network = errors.HTTPError  # type: ignore[attr-defined]  # the HTTP library's own base class

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(_WANTED)))
    except (network, OSError, errors.HFValidationError) as error:
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        at = f" at revision {revision}" if revision else ""
        text = f"model.path={repo} is no directory here, and the hub gave no such model{at}: {reason}"
        raise ModelError(text) from error


def open_checkpoint(directory: Path) -> Checkpoint:
    """Check that *directory* holds a config and readable safetensors; list its files. Raises `ModelError`."""
    config = _json(directory / "config.json")
    weights = _weights(directory)
    keys = frozenset(key for file in weights for key in _keys(file))
    tokenizer = directory / "tokenizer.json"
    return Checkpoint(directory, config, weights, keys, tokenizer if tokenizer.is_file() else None)


def digest(files: tuple[Path, ...], whole: int = _WHOLE) -> str:
    """Return a digest of the weight files' names and contents.

    Up to *whole* bytes in all it is "sha256:..." of everything. For bigger checkpoints it is "sha256-sampled:..." of
    each file's name, size, first MiB (with the safetensors header) and last MiB.
    """
    sizes = [file.stat().st_size for file in files]
    sampled = sum(sizes) > whole
    digest = hashlib.sha256()
    for file, size in zip(files, sizes, strict=True):
        digest.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as stream:
            if sampled and size > 2 * _CHUNK:
                digest.update(stream.read(_CHUNK))
                stream.seek(size - _CHUNK)
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    return f"{'sha256-sampled' if sampled else 'sha256'}:{digest.hexdigest()}"


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ModelError(f"{file} is missing; a checkpoint directory holds config.json and *.safetensors")
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{file} holds no JSON object")
    return value


def _weights(directory: Path) -> tuple[Path, ...]:
    index = directory / _INDEX
    if index.is_file():
        content = _json(index)
        shards = content.get("weight_map")
        if not isinstance(shards, dict) or not shards or not isinstance(content.get("metadata"), dict):
            raise ModelError(f"{index} lacks its weight_map or metadata")
        names = sorted(set(map(str, shards.values())))
        if strange := next((name for name in names if Path(name).name != name), None):
            raise ModelError(f"{index} names {strange!r}, which is no file of this directory")
        files = tuple(directory / name for name in names)
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            more = f" and {len(missing) - 1} more" if missing[1:] else ""
            raise ModelError(f"{directory}: {_INDEX} names files that are missing: {missing[0]}{more}")
        return files
    if (directory / _SINGLE).is_file():
        return (directory / _SINGLE,)
    if any(next(directory.glob(pattern), None) for pattern in _PICKLED):
        raise ModelError(f"{directory} holds pickled weights only, which can run code; only *.safetensors are read")
    others = sorted(file.name for file in directory.glob("*.safetensors"))
    found = f" (found {others[0]} without its {_INDEX})" if others else ""
    raise ModelError(f"{directory} has no weights: expected {_SINGLE} or {_INDEX}{found}")


def _keys(file: Path) -> list[str]:
    """The names of a file's tensors, from its header; a truncated file is refused."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as opened:
            keys = list(opened.keys())
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is not a whole safetensors file: {error}") from error
    if not keys:
        raise ModelError(f"{file} holds no tensor")
    return keys
