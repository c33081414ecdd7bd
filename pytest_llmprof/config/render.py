"""Typed settings as plain data, and plain data as YAML with a comment beside a value."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from pytest_llmprof.config.schema import NO_KEY

PLACEHOLDERS = ("<test>", "<stage>")
"""What stands for a test and its stage where the session's configuration is checked and shown."""

# Texts that PyYAML leaves without quotes and other readers (OmegaConf's among them) take for numbers.
_NUMBER_LIKE = re.compile(r"[-+]?[\d_.]+([eE][-+]?\d+)?")


def plain(value: Any) -> Any:
    """*value* as dicts, lists and scalars."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value) if field.metadata != NO_KEY}
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


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Each value on one line; a text that some reader takes for a number, or that is not printable, in quotes."""

    def represent_text(self, value: str) -> Any:
        bare = value.isprintable() and not _NUMBER_LIKE.fullmatch(value)
        return self.represent_scalar("tag:yaml.org,2002:str", value, style=None if bare else '"')


_Dumper.add_representer(str, _Dumper.represent_text)


def _flow(value: Any) -> str:
    return _dumped(value) if isinstance(value, (list, dict)) else _scalar(value)


def _dumped(value: Any) -> str:
    # Too wide to be folded: a value stays on its line.
    text: str = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=10**6, sort_keys=False
    )
    return text.removesuffix("\n").removesuffix("\n...")


_scalar = lru_cache(maxsize=1024, typed=True)(_dumped)


def to_yaml(data: Mapping[str, Any], comment: Callable[[str], str] = lambda path: "") -> str:
    """*data* as YAML in its own order, lists on one line; *comment* gives a leaf's trailing comment."""
    lines: list[str] = []

    def write(block: Mapping[str, Any], prefix: str, indent: str) -> None:
        for name, value in block.items():
            path = f"{prefix}.{name}" if prefix else name
            key = _flow(name)
            if isinstance(value, Mapping) and value:
                lines.append(f"{indent}{key}:")
                write(value, path, indent + "  ")
                continue
            note = comment(path)
            lines.append(f"{indent}{key}: {_flow(value)}" + (f"  # {note}" if note else ""))

    write(data, "", "")
    return "\n".join(lines) + "\n"
