"""Values as the types of their fields, by msgspec, and what a type allows in words."""

from __future__ import annotations

import enum
import math
import os
import re
import types
from collections.abc import Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

import msgspec

_SEQUENCES = (tuple, list, set, frozenset, Sequence, Set)
_BOOLEANS = {"yes": True, "on": True, "no": False, "off": False}
"""What YAML reads as booleans and msgspec does not."""
_WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "text", type(None): "null"}
_INTEGER = re.compile(r"[+-]?\d{1,30}")
_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


class Mismatch(Exception):
    """A value that its type does not allow: its key below the one converted ("" = that), itself, what is allowed."""

    def __init__(self, key: str, value: object, allowed: str) -> None:
        super().__init__(key, value, allowed)
        self.key = key
        self.value = value
        self.allowed = allowed

    def below(self, path: str) -> Mismatch:
        """The same with a key that begins at *path*."""
        return Mismatch(f"{path}.{self.key}" if self.key else path, self.value, self.allowed)


def bare(hint: Any) -> Any:
    """*hint* without what `Annotated` adds to it."""
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def describe(hint: Any) -> str:
    """What a value of this type may be, in words."""
    if get_origin(hint) is Annotated:
        inner, *metas = get_args(hint)
        for meta in metas:
            if meta.description is not None:
                return str(meta.description)
        bounds = [f"{sign} {bound}" for one in metas for name, sign in _BOUNDS.items() if (bound := getattr(one, name))
                  is not None]
        return " ".join([describe(inner), " and ".join(bounds)]).strip()
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        named = [describe(one) for one in arguments if one is not type(None)]
        return ", or ".join([*named, *(["null"] if type(None) in arguments else [])])
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return f"one of {', '.join(hint.__members__)}"
    if (origin or hint) in _SEQUENCES:
        inner = describe(arguments[0]) if arguments else "values"
        return f"a list of {inner.removeprefix('an ').removeprefix('a ')}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "a mapping, {name: value}"
    return _WORDS.get(hint, "a mapping of keys" if is_dataclass(hint) else "a value")


def convert(hint: Any, value: Any) -> Any:
    """*value* as *hint*, a type of a configuration dataclass. Raises `Mismatch`.

    As lenient as Hydra: "7" is an integer where one is asked for, yes, on and 1 are true, and one text stands
    for a list of one. A fraction is not an integer, and null is allowed only where the type says so.
    """
    try:
        return msgspec.convert(_prepared(hint, value), hint, strict=False)
    except msgspec.ValidationError:
        raise Mismatch("", value, describe(hint)) from None


def _prepared(hint: Any, value: Any) -> Any:
    """*value* in the form that msgspec reads: it is less lenient than Hydra in some places, and more in others."""
    kind = _kind(hint, value)
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    if value is None or kind is Any or not isinstance(origin, type):  # or a Literal
        return value
    if origin in _SEQUENCES:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)):
            _refuse(hint, value)
        try:
            return [_prepared(arguments[0] if arguments else Any, item) for item in items]
        except Mismatch:
            _refuse(hint, value)
    if isinstance(value, Mapping):
        return _prepared_mapping(kind, value)
    if issubclass(origin, enum.Enum):  # by name, where msgspec goes by value
        return kind[value].value if value in kind.__members__ else _refuse(hint, value)
    if kind is str and isinstance(value, str) and not _can_be_encoded(value):
        raise Mismatch("", value, "text without NUL characters and halves of characters")
    if kind is str and isinstance(value, (bool, int)):
        return str(value).lower()
    if kind is str and isinstance(value, float):  # 1e3 read from YAML is 1000.0: what was written is lost
        raise Mismatch("", value, "text (quote a text that looks like a number)")
    if kind is int and isinstance(value, (str, int, float)) and not isinstance(value, bool):
        text = str(value).strip()
        if not _INTEGER.fullmatch(text):
            _refuse(hint, value)
        if abs(int(text)) >= 2**63:
            allowed = describe(hint)
            raise Mismatch("", value, allowed if "2**63" in allowed else f"{allowed} (below 2**63)")
        return int(text)
    if kind is float and isinstance(value, (str, int, float)) and not _is_finite(value):
        _refuse(hint, value)
    if isinstance(value, str) and kind is not str:
        return _BOOLEANS.get(value.lower(), value) if value.lower() != "null" else _refuse(hint, value)
    return value


def _prepared_mapping(kind: Any, value: Mapping[Any, Any]) -> Any:
    """The same for a mapping, whose values are converted one by one so that an error names the key."""
    if is_dataclass(kind):
        inner = get_type_hints(kind, include_extras=True)
        known = {one.name: inner[one.name] for one in fields(kind)}
        for name in value:
            if name not in known:
                raise Mismatch(str(name), value[name], f"one of the keys {', '.join(known)}")
    else:
        known = dict.fromkeys(value, (*get_args(kind), Any, Any)[1])
    found = {}
    for name, item in value.items():
        try:
            convert(known[name], item)
            found[str(name)] = _prepared(known[name], item)
        except Mismatch as error:
            raise error.below(str(name)) from None
    return found


def _kind(hint: Any, value: Any) -> Any:
    """The type that *value* is to become: *hint*, or the one of a union that fits best."""
    hint = bare(hint)
    if get_origin(hint) not in (Union, types.UnionType):
        return hint
    kinds = [bare(one) for one in get_args(hint) if one is not type(None)]
    wanted = _SEQUENCES if isinstance(value, (list, tuple)) else ()
    best = [one for one in kinds if one is type(value) or (get_origin(one) or one) in wanted]
    return (best or [one for one in kinds if get_origin(one) not in _SEQUENCES] or kinds)[0]


def _can_be_encoded(text: str) -> bool:
    """Whether *text* can be (a part of) a path, a variable or an argument."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _is_finite(value: str | float) -> bool:
    """Whether *value* is a number that is neither infinite nor NaN."""
    try:
        return math.isfinite(float(value))
    except (ValueError, OverflowError):
        return False


def _refuse(hint: Any, value: object) -> NoReturn:
    raise Mismatch("", value, describe(hint))
