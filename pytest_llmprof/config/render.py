"""Typed settings as plain data, and plain data as YAML with a comment beside a value."""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

__all__ = ["PLACEHOLDERS", "escaped", "per_test", "plain", "to_yaml", "with_interpolations"]

PLACEHOLDERS = ("<test>", "<stage>")
"""What stands for a test and its stage where the session's configuration is checked and shown."""

# Texts that PyYAML leaves bare and other readers (OmegaConf's among them) take for numbers.
_SIMPLE = re.compile(r"[A-Za-z_][\w./-]*", re.ASCII)
_WORDS = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}
_NUMBER_LIKE = re.compile(r"[-+]?[\d_.]+([eE][-+]?\d+)?")


def plain(value: Any) -> Any:
    """*value* as dicts, lists and scalars."""
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


def escaped(value: Any) -> Any:
    """Plain data with every `${` of its texts escaped: what is resolved is read back as it is, not once more."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + "\\${", value)
    if isinstance(value, Mapping):
        return {name: escaped(item) for name, item in value.items()}
    return [escaped(item) for item in value] if isinstance(value, list) else value


def per_test(value: Any) -> Any:
    """Plain data with the test's own name and stage in place of the placeholders that stand for them."""
    if isinstance(value, Mapping):
        return {name: per_test(item) for name, item in value.items()}
    if isinstance(value, list):
        return [per_test(item) for item in value]
    if isinstance(value, str):
        for placeholder, name in zip(PLACEHOLDERS, ("test", "stage"), strict=True):
            value = value.replace(placeholder, f"${{llmprof.{name}}}")
    return value


def with_interpolations(value: Any, raw: Any, config: Mapping[str, Any]) -> Any:
    """*value*, plain and resolved, to be saved: a text that depends on the test stays as it is written in *raw*.

    So a saved configuration serves any test. *config* is the whole configuration, not resolved.
    """
    if isinstance(value, Mapping) and isinstance(raw, Mapping):
        return {name: with_interpolations(item, raw.get(name), config) for name, item in value.items()}
    if isinstance(value, list) and isinstance(raw, list) and len(value) == len(raw):
        return [with_interpolations(item, one, config) for item, one in zip(value, raw, strict=True)]
    return raw if isinstance(raw, str) and _depends_on_test(raw, config) else escaped(value)


def _depends_on_test(text: str, config: Mapping[str, Any]) -> bool:
    """Whether *text* names the test or its stage, itself or by another key."""
    for path in re.findall(r"\$\{([\w.]+)\}", text):
        if path.startswith("llmprof."):
            return True
        value: Any = config
        for part in path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(value, str) and _depends_on_test(value, config):
            return True
    return False


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
