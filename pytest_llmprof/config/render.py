"""Settings as plain data, and plain data as YAML with a comment beside a value."""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from pytest_llmprof.config.paths import with_part
from pytest_llmprof.config.schema import Settings, StageSettings
from pytest_llmprof.config.validate import PLACEHOLDERS

__all__ = ["as_tree", "escaped", "per_test", "plain", "to_yaml"]

# Texts that PyYAML leaves bare and other readers (OmegaConf's among them) take for numbers.
_SIMPLE = re.compile(r"[A-Za-z_][\w./-]*", re.ASCII)
_WORDS = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}
_NUMBER_LIKE = re.compile(r"[-+]?[\d_.]+([eE][-+]?\d+)?")


def plain(value: Any) -> Any:
    """*value* as dicts, lists and scalars, in the shape of the configuration's keys."""
    if isinstance(value, StageSettings):
        block = {"enable": value.enable, **(plain(value.options) or {})}
        return block if value.output is None else block | {"output": plain(value.output)}
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(plain(item) for item in value)
    if isinstance(value, enum.Enum):
        return value.name
    return str(value) if isinstance(value, Path) else value


def as_tree(settings: Settings) -> dict[str, Any]:
    """*settings* as plain data, in the shape of the configuration's keys."""
    names = ("stages", "model", "infer", "measure", "dataset", "pipeline")
    node = {"llmprof": {"test": settings.test, "stage": settings.stage}}
    return {name: plain(getattr(settings, name)) for name in names} | node


def escaped(value: Any) -> Any:
    """Plain data with every `${` of its texts escaped: what is resolved is read back as it is, not once more."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + "\\${", value)
    if isinstance(value, Mapping):
        return {name: escaped(item) for name, item in value.items()}
    return [escaped(item) for item in value] if isinstance(value, list) else value


def per_test(path: str, value: Any, saved: Mapping[str, Any]) -> Any:
    """What a saved configuration has in place of each test's own name and stage, as it was written before.

    A session's holds the placeholders; a test's holds its own names (*saved*), which only a save_dir is searched for.
    """
    if isinstance(value, Mapping):
        return {name: per_test(path, item, saved) for name, item in value.items()}
    if isinstance(value, list):
        return [per_test(path, item, saved) for item in value]
    if not isinstance(value, str):
        return value
    for shown, name in zip(PLACEHOLDERS, ("test", "stage"), strict=True):
        if str(saved[name]) == shown:
            value = value.replace(shown, f"${{llmprof.{name}}}")
        elif path.endswith(".save_dir"):
            value = with_part(value, str(saved[name]), f"${{llmprof.{name}}}")
    return value


def _is_plain(value: Any) -> bool:
    """Whether PyYAML writes it on one line and every reader takes it for what it is."""
    if isinstance(value, str):
        return value.isprintable() and not _NUMBER_LIKE.fullmatch(value)
    if isinstance(value, Mapping):
        return all(_is_plain(item) for pair in value.items() for item in pair)
    return not isinstance(value, list) or all(map(_is_plain, value))


def _scalar(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) or (
        isinstance(value, str) and _SIMPLE.fullmatch(value) and value.lower() not in _WORDS
    ):
        return str(value)
    if not _is_plain(value):  # JSON is YAML too, with every text in quotes
        return json.dumps(value, ensure_ascii=True)
    # Too wide to be folded: a value stays on its line.
    text: str = yaml.safe_dump(
        value, default_flow_style=True, allow_unicode=True, sort_keys=False, width=10**6
    )
    return text.removesuffix("\n").removesuffix("\n...")


def to_yaml(data: Mapping[str, Any], comment: Callable[[str], str | None] = lambda path: None) -> str:
    """*data* as YAML in its own order, lists on one line; *comment* gives a leaf's trailing comment."""
    lines: list[str] = []

    def write(block: Mapping[str, Any], prefix: str, indent: str) -> None:
        for name, value in block.items():
            path = f"{prefix}.{name}" if prefix else name
            key = _scalar(name)
            if isinstance(value, Mapping) and value:
                lines.append(f"{indent}{key}:")
                write(value, path, indent + "  ")
                continue
            note = comment(path)
            lines.append(f"{indent}{key}: {_scalar(value)}" + (f"  # {note}" if note else ""))

    write(data, "", "")
    return "\n".join(lines) + "\n"
