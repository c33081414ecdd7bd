"""Reading override texts (`KEY=VALUE`) from the command line, the ini file and markers.

Hydra's own parser reads them; what it says about a text that it can't read is replaced by the quoting that
works.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from pytest_llmprof.config.presets import Presets, quoted
from pytest_llmprof.config.provenance import Assignment, Choice, Source, flatten
from pytest_llmprof.config.registry import Registry
from pytest_llmprof.config.tree import find, why_no_output
from pytest_llmprof.errors import ConfigError, nearest

_KEY = re.compile(r"(\+\+|\+)?[A-Za-z_][\w./@$-]*")
_QUOTED = r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\""""
_NUMBER = r"([-+]?(?:[\d._]*\d[\d._]*(?:e[-+]?[\d_]+)?|inf|nan)|true|false)(?=\s*[,\]}])"
# A quoted text; or a number, true or false that is an item, or (first) the value of a key in {...}: `cuda:0` in a list
# looks like that.
_LITERALS = tuple(
    re.compile(rf"{_QUOTED}|({before}){_NUMBER}", re.IGNORECASE)
    for before in (r"[\[,]\s*|[{,]\s*[\w.$/-]+\s*:\s*", r"[\[,]\s*")
)


def _example(text: str, source: Source) -> str:
    """How to write the override *text* where it was written."""
    if not source.from_command_line:
        return text
    shell = '"' + re.sub(r'([\\"`$])', r"\\\1", text) + '"'
    return f"--llmprof-override {shell}"


@dataclass(frozen=True)
class Parser:
    """Reads override texts against the tree of keys and the presets of a session."""

    root: Any
    presets: Presets
    registry: Registry

    def parse(self, texts: Iterable[str], source: Source) -> tuple[list[Assignment], list[Choice]]:
        """Split *texts* into keys and presets, each in its order. Raises `ConfigError`."""
        assignments: list[Assignment] = []
        choices: list[Choice] = []
        for text in texts:
            override = _parse(text, source, self.root, self.presets)
            key, package, value = override.key_or_group, override.package, override.value()
            is_group = "/" in key or package is not None or bool(self.presets.options(key))
            if is_group and not isinstance(value, dict):
                choices += self._choose(key, package, _typed(text, value) or value, source)
            else:
                raw = _typed(text, value)
                assignments += flatten(self.root, key, value, source, raw)
        return assignments, choices

    def _choose(self, group: str, package: str | None, value: Any, source: Source) -> list[Choice]:
        key = f"{group}@{package}" if package is not None else group
        options = self.presets.options(group)
        if not options:
            groups = self.presets.groups()
            hint = nearest(group, groups)
            if not hint and find(self.root, group.replace("/", ".")):
                hint = f" (a key is written with dots: {group.replace('/', '.')}=…)"
            raise ConfigError(
                f"{key}={value}: {group} is an unknown preset group, set {source.where}; "
                f"the groups are {', '.join(groups)}{hint}"
            )
        if isinstance(value, list):
            raise ConfigError(
                f"{key}=[{','.join(map(str, value))}]: one preset can be chosen, not a list, set {source.where}; "
                f"{group} is one of {', '.join(options)}"
            )
        option = value if isinstance(value, str) else str(value)
        if not isinstance(value, (str, int, float)) or self.presets.file(group, option) is None:
            raise ConfigError(
                f"{key}={'null' if value is None else value}: unknown preset, set {source.where}; "
                f"{group} is one of {', '.join(options)}, or a preset of your own (--llmprof-config-dir)"
                f"{nearest(option, options)}"
            )
        if key in self.presets.known:
            return [Choice(key, option, source)]
        mounts = sorted(name for name in self.presets.known if name.partition("@")[0] == group)
        if package is None and mounts:
            return [Choice(name, option, source, short=True) for name in mounts]
        if package is None or not mounts:  # another preset may name the group: that is seen when they are composed
            return [Choice(key, option, source)]
        raise ConfigError(
            f"{key}={option}: nothing is mounted at {package}, set {source.where}; "
            + self._mounts(group, package, mounts)
        )

    def _mounts(self, group: str, package: str, mounts: Sequence[str]) -> str:
        stage = re.match(r"pipeline\.(\w+)\.output", package)
        without = stage is not None and find(self.root, stage[0]) is None and stage[1] in self.registry.stages
        why = f"{why_no_output(self.registry, stage[1])}; " if stage is not None and without else ""
        return f"{why}{group} is mounted as {', '.join(mounts)}{nearest(f'{group}@{package}', mounts)}"


def _mend(text: str, source: Source, root: Any, presets: Presets) -> str:
    """What is wrong with an override that Hydra can't read, and the form that works."""
    key, _, value = (part.strip() for part in text.partition("="))
    words = text.split()
    if len(words) > 1 and all(_sets(word, root, presets) for word in words):
        each, join = ("each --llmprof-override", " ") if source.from_command_line else ("each entry", " and ")
        return f"one override for {each}: {join.join(_example(word, source) for word in words)}"
    for wrong, fixed in (
        ("no spaces around '='", f"{key}={value}"),
        ("no comment behind the value", f"{key}={value.partition(' #')[0].rstrip()}"),
    ):
        if fixed != text and _read(fixed) is not None:
            return f"{wrong}, {_example(fixed, source)}"
    group, at, _ = key.partition("@")
    if "/" in group and "." in group:
        dotted = group.replace("/", ".")
        if find(root, dotted) is not None:
            return f"a key is written with dots, {_example(f'{dotted}={value}', source)}"
        group, _, name = group.rpartition(".")
        return f"a preset is GROUP=NAME, {_example(f'{group}={name}', source)}"
    if presets.file(group.lstrip("+"), value) is not None:
        return f"the preset's name needs quotes: {_example(f'{key}={quoted(value)}', source)}"
    if at or presets.options(group):
        return _one_of_group(key, presets, source)
    if value[:1] in ("[", "{"):
        form = "['a=b.png','c.png']" if value[0] == "[" else "{NAME: 'x=y'}"
        return f"what holds other than letters, digits and -_./ needs quotes inside the brackets, as in {key}={form}"
    return f"the value needs quotes: {_example(f'{key}={quoted(value)}', source)}"


def _sets(word: str, root: Any, presets: Presets) -> bool:
    """Whether *word* is an override of its own, of a key or of a group that there is."""
    key, equals, _ = word.lstrip("+").partition("=")
    return bool(equals) and (find(root, key) is not None or bool(presets.options(key.partition("@")[0])))


def _one_of_group(key: str, presets: Presets, source: Source) -> str:
    """How a preset of the group in *key* is chosen."""
    options = presets.options(key.lstrip("+").partition("@")[0])
    if not options:
        return f"a preset is GROUP=NAME; the groups are {', '.join(presets.groups())}"
    return f"a preset is GROUP=NAME, one of {', '.join(options)}: {_example(f'{key}={options[0]}', source)}"


def _typed(text: str, value: Any) -> Any:
    """*value*, what Hydra read from the override *text*, with numbers, true and false as they were typed.

    Hydra reads 2024_01 as 202401; a text key takes what was typed. None where there is nothing of the kind.
    """
    if isinstance(value, (bool, int, float)):
        return text.partition("=")[2].strip()
    if not isinstance(value, (list, dict)):
        return None
    key, _, typed = text.partition("=")
    for literal in _LITERALS:
        as_texts = literal.sub(lambda match: f"{match[1]}'{match[2]}'" if match[2] else match[0], typed)
        override = _read(f"{key}={as_texts}")
        if override is not None:
            return override.value()
    return None


def _read(text: str) -> Any:
    """What Hydra makes of an override; None where it can't read it."""
    from hydra.errors import HydraException

    try:
        return _hydra_parser().parse_override(text)
    except (HydraException, ValueError, RecursionError):  # also for numbers and brackets without end
        return None


@cache
def _hydra_parser() -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create()


def _parse(text: str, source: Source, root: Any, presets: Presets) -> Any:
    """What Hydra reads of *text*. Raises `ConfigError` with the form that works where it can't."""
    shown = " ".join(text.split())
    usual = _example("measure.rounds=5", source)
    if not shown:
        raise ConfigError(f"an empty override, given {source.where}: write KEY=VALUE, {usual}")

    def wrong(why: str) -> ConfigError:
        return ConfigError(f"override {shown!r}, given {source.where}{why}")

    key, equals, value = (part.strip() for part in text.partition("="))
    if key.startswith("~"):
        raise wrong(
            f", would delete {key[1:]}: keys can't be deleted; set the key to its default, or choose another preset"
        )
    if not equals:
        example = _example(f"{shown}=VALUE", source) if _KEY.fullmatch(shown) else usual
        raise wrong(f", has no '=': write KEY=VALUE, {example}")
    if not _KEY.fullmatch(key):
        raise wrong(f": {key!r} is no key; write KEY=VALUE, {usual}")
    override = _read(text)
    if override is None:
        raise wrong(f", can't be read: {_mend(text, source, root, presets)}")
    if override.is_sweep_override():
        if "/" in key or "@" in key or presets.options(key.lstrip("+")):
            raise wrong(f", has several values: {_one_of_group(key, presets, source)}")
        one, several = (_example(f"{key}={form}", source) for form in (quoted(value), f"[{value}]"))
        raise wrong(f", has several values: give one; a text with a comma is quoted, {one}; for a list, {several}")
    return override
