"""Turn a composed value into the type its field asks for, or say what the type would be."""

from __future__ import annotations

import enum
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin

__all__ = ["Mismatch", "convert", "describe"]

_TRUE = {"true", "yes", "on", "1"}
_FALSE = {"false", "no", "off", "0"}
_SEQUENCES = (tuple, list, frozenset)


class Mismatch(Exception):
    """A value of the wrong type: its key below the one converted ("" = that), itself, what is allowed."""

    def __init__(self, key: str, value: object, allowed: str) -> None:
        super().__init__(key, value, allowed)
        self.key = key
        self.value = value
        self.allowed = allowed

    def below(self, path: str) -> Mismatch:
        """The same, seen from above *path*."""
        return Mismatch(f"{path}.{self.key}" if self.key else path, self.value, self.allowed)


def describe(hint: Any) -> str:
    """What a value of this type looks like, in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        named = [describe(one) for one in arguments if one is not type(None)]
        return ", or ".join([*named, *(["null"] if type(None) in arguments else [])])
    if origin is Literal:
        return " | ".join(str(one) for one in arguments)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return " | ".join(hint.__members__)
    if origin in _SEQUENCES or (origin is not None and _is_abstract_sequence(origin)):
        inner = describe(arguments[0]) if arguments else "values"
        return f"a list of {inner.removeprefix('an ').removeprefix('a ')}"
    if origin is not None and issubclass(origin, Mapping):
        return "a mapping, {name: value}"
    words = {bool: "true or false", int: "an integer", float: "a number", str: "text", type(None): "null"}
    if hint in words:
        return words[hint]
    return "a mapping of keys" if is_dataclass(hint) else "a value"


def _is_abstract_sequence(origin: Any) -> bool:
    return origin is Sequence


def convert(hint: Any, value: Any) -> Any:
    """*value* as *hint*, a type of a configuration dataclass. Raises `Mismatch`.

    As lenient as Hydra: "7" is an integer where one is asked for, yes, on and 1 are true, and one text stands
    for a list of one. A fraction is not an integer, and null is allowed only where the type says so.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _union(hint, arguments, value)
    if origin is Literal:
        for one in arguments:
            if value == one and isinstance(value, bool) == isinstance(one, bool):
                return one
        raise Mismatch("", value, describe(hint))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        if value in hint.__members__:
            return hint[value]
        raise Mismatch("", value, describe(hint))
    if origin in _SEQUENCES or _is_abstract_sequence(origin):
        return _sequence(hint, origin, arguments, value)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping(hint, arguments, value)
    if isinstance(hint, type) and is_dataclass(hint):
        return _dataclass(hint, value)
    return _scalar(hint, value)


def _union(hint: Any, arguments: tuple[Any, ...], value: Any) -> Any:
    if value is None and type(None) in arguments:
        return None
    mismatch: Mismatch | None = None
    for one in sorted(arguments, key=lambda kind: kind is str):
        if one is type(None):
            continue
        if isinstance(value, str) and str in arguments and get_origin(one) in _SEQUENCES:
            continue  # text | list of text: a text stays a text
        try:
            return convert(one, value)
        except Mismatch as error:
            mismatch = error
    if mismatch is not None and len(arguments) == 2 and type(None) in arguments:
        allowed = mismatch.allowed if mismatch.key else f"{mismatch.allowed}, or null"
        raise Mismatch(mismatch.key, mismatch.value, allowed)
    raise Mismatch("", value, describe(hint))


def _sequence(hint: Any, origin: Any, arguments: tuple[Any, ...], value: Any) -> Any:
    inner = arguments[0] if arguments else Any
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, (list, tuple)):
        raise Mismatch("", value, describe(hint))
    try:
        items = [convert(inner, item) for item in value]
    except Mismatch:
        raise Mismatch("", value, describe(hint)) from None
    return (origin if origin in _SEQUENCES else tuple)(items)


def _mapping(hint: Any, arguments: tuple[Any, ...], value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise Mismatch("", value, describe(hint))
    inner = arguments[1] if len(arguments) == 2 else Any
    found = {}
    for name, item in value.items():
        try:
            found[str(name)] = convert(inner, item)
        except Mismatch as error:
            raise error.below(str(name)) from None
    return types.MappingProxyType(found)


def _dataclass(hint: type, value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise Mismatch("", value, describe(hint))
    hints = typing.get_type_hints(hint)
    known = {one.name: one for one in fields(hint)}
    for name in value:
        if name not in known:
            raise Mismatch(str(name), value[name], f"one of the keys {', '.join(known)}")
    found = {}
    for name, one in known.items():
        if name not in value:
            if one.default is MISSING and one.default_factory is MISSING:
                raise Mismatch(name, None, describe(hints[name]))
            continue
        try:
            found[name] = convert(hints[name], value[name])
        except Mismatch as error:
            raise error.below(name) from None
    return hint(**found)


def _scalar(hint: Any, value: Any) -> Any:
    if hint is bool:
        word = str(value).lower() if isinstance(value, (str, bool, int)) else ""
        if word in _TRUE or word in _FALSE:
            return word in _TRUE
    elif hint is int and not isinstance(value, bool):
        if isinstance(value, int):
            return value
        if isinstance(value, str) and value.strip().lstrip("+-").isdecimal():
            return int(value)
    elif hint is float and not isinstance(value, bool):
        if isinstance(value, (int, float)):
            return float(value)
        if isinstance(value, str):
            try:
                return float(value)
            except ValueError:
                pass
    elif hint is str:
        if isinstance(value, str):
            return value
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, int):
            return str(value)
        if isinstance(value, float):  # 1e3 read from YAML is 1000.0: what was written is lost
            raise Mismatch("", value, "text (quote a text that looks like a number)")
    elif isinstance(hint, type) and isinstance(value, hint) and not isinstance(value, bool):
        return value
    raise Mismatch("", value, describe(hint))
