"""From sources to settings: Hydra composes the presets, explicit keys go over them, a typed check ends it.

Hydra only chooses and merges presets. Keys are put over the result here, in the order config file, ini,
marker, command line, with legacy keys below all explicit ones; so where each value came from is known.
"""

from __future__ import annotations

import copy
import hashlib
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pytest_llmprof.config import legacy
from pytest_llmprof.config.convert import Mismatch, convert
from pytest_llmprof.config.hydra_compose import compose_presets
from pytest_llmprof.config.overrides import Parser, quoted
from pytest_llmprof.config.provenance import (
    COMMAND_LINE,
    INI,
    STAGE_INI,
    STAGE_OPTION,
    Assignment,
    Choice,
    Source,
    flatten,
    marker,
)
from pytest_llmprof.config.registry import Registry
from pytest_llmprof.config.render import as_tree, escaped, per_test, plain, to_yaml
from pytest_llmprof.config.schema import Settings
from pytest_llmprof.config.tree import (
    MISSING_VALUE,
    Block,
    Leaf,
    build,
    dotted,
    find,
    known_paths,
    leaves,
    root_block,
    unknown,
    with_defaults,
    without_null_blocks,
)
from pytest_llmprof.config.trees import ConfigTrees
from pytest_llmprof.config.validate import PLACEHOLDERS, Checker, show_value
from pytest_llmprof.errors import ConfigError, nearest

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["Composer", "ConfigSources"]


@dataclass(frozen=True)
class ConfigSources:
    """What the user gave, as the options and the ini file hold it."""

    invocation_dir: Path
    """Relative paths of the command line lie under it."""
    rootdir: Path
    """Relative paths of all other sources lie under it."""
    config_dir: Path | None = None
    """The user's configuration tree, laid over the packaged one (relative: under `invocation_dir`)."""
    ini_overrides: tuple[str, ...] = ()
    cli_overrides: tuple[str, ...] = ()
    stages: tuple[str, ...] | None = None
    """Stages of `--llmprof-stage` or its ini twin, maybe comma separated; None = the key `stages`."""
    stages_from_ini: bool = False
    """Whether `stages` is the ini twin: then `stages=` on the command line beats it."""
    frozen: Path | None = None
    """A configuration that another process composed: it is the whole one, and all other sources are ignored."""


@dataclass
class _Composition:
    """One composed configuration, before it is set to a test."""

    config: DictConfig
    choices: Mapping[str, str]
    chosen: Mapping[str, Choice]
    """Presets that somebody chose, by key of the defaults list."""
    origins: Mapping[str, Assignment]
    """Keys that somebody set, the winner of each."""
    legacy: tuple[str, ...] = ()
    """Legacy keys that were used, as typed."""
    set_in: Mapping[str, str] = field(default_factory=dict)
    """Where each `save_dir` was set, by its key."""


@dataclass
class _Layer:
    assignments: list[Assignment] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)


class Composer:
    """The configuration of one pytest session. Cheap to make; composes when first asked.

    Raises `ConfigError`, one line, from each method that composes.
    """

    def __init__(self, sources: ConfigSources, registry: Registry) -> None:
        self.sources = sources
        self.registry = registry
        self._session: Settings | None = None
        self._root: Block | None = None
        self._trees: ConfigTrees | None = None
        self._fixed: tuple[_Layer, _Layer] | None = None
        self._presets: dict[tuple[str, ...], tuple[DictConfig, dict[str, str]]] = {}
        self._compositions: dict[tuple[tuple[str, ...], str], _Composition] = {}
        self._legacy_used: dict[str, None] = {}

    # -- what the plugin asks for

    def session(self) -> Settings:
        """Check the session's configuration, with placeholders for the test and its stage."""
        if self._session is None:
            self._session = self._settings(self._compose((), ""), *PLACEHOLDERS)
        return self._session

    def for_test(
        self, marker_overrides: tuple[str, ...], marker_where: str, test: str, stage: str
    ) -> Settings:
        """The configuration of *test* in *stage*.

        *marker_overrides* are its marks' overrides in rising precedence (module, class, function, parameter);
        *marker_where* says where they stand ("tests/test_x.py:12"). *test* is its directory under the run
        directory. Presets are composed once for each set of presets chosen, however many tests there are.
        """
        return self._settings(self._compose(tuple(marker_overrides), marker_where), test, stage)

    def show(self) -> str:
        """The session's configuration as YAML, with a comment on each value that somebody set."""
        composition = self._compose((), "")
        settings = self._settings(composition, *PLACEHOLDERS)
        _, trees, _ = self._parser()
        shown = {
            key: option
            for key, option in composition.choices.items()
            if key in composition.chosen or not trees.is_ours(key, option)
        }

        def comment(path: str) -> str | None:
            if path in composition.origins:
                return composition.origins[path].source.comment
            source = trees.presets.origin(path, shown)
            return source.comment if source is not None else None

        return to_yaml(escaped(as_tree(settings)), comment)

    @property
    def legacy_keys(self) -> tuple[str, ...]:
        """The legacy keys used so far, in the session or by a marker, as typed."""
        return tuple(self._legacy_used)

    def legacy_message(self) -> str | None:
        """One text naming each legacy key used so far, in the session or by a marker; None where none was."""
        return legacy.message(self._legacy_used)

    # -- composing

    def _parser(self) -> tuple[Block, ConfigTrees, Parser]:
        if self._root is None or self._trees is None:
            root = root_block(self.registry)
            self._trees = ConfigTrees.open(
                self.sources.config_dir, self.sources.invocation_dir, self.registry
            )
            self._root = root
        return self._root, self._trees, Parser(self._root, self._trees.presets, self._trees.known)

    def _session_layers(self) -> tuple[_Layer, _Layer]:
        """(config file and ini, command line): below and above a marker."""
        if self._fixed is None:
            root, trees, parser = self._parser()
            below = _Layer()
            if trees.user_source is not None:
                body = without_null_blocks(root, trees.user_body)
                below.assignments = flatten(root, "", body, trees.user_source)
                saved = trees.user_body.get("llmprof")
                if isinstance(saved, Mapping) and {"test", "stage"} <= set(saved):
                    # A saved config.yaml can serve as a configuration: its test and stage were another run's.
                    below.assignments = [
                        replace(one, value=per_test(one.path, one.value, saved))
                        for one in below.assignments
                        if one.path not in ("llmprof.test", "llmprof.stage")
                    ]
            assignments, choices = parser.parse(self.sources.ini_overrides, INI)
            below.assignments += assignments
            below.choices += choices
            above = _Layer(*parser.parse(self.sources.cli_overrides, COMMAND_LINE))
            if self.sources.stages is not None:
                names = [name.strip() for text in self.sources.stages for name in text.split(",")]
                source, layer = (STAGE_INI, below) if self.sources.stages_from_ini else (STAGE_OPTION, above)
                layer.assignments.append(Assignment("stages", [name for name in names if name], source))
            self._fixed = below, above
        return self._fixed

    def _compose(self, overrides: tuple[str, ...], where: str) -> _Composition:
        key = (overrides, where if overrides else "")
        if key not in self._compositions:
            self._compositions[key] = self._compose_new(overrides, where)
        return self._compositions[key]

    def _compose_new(self, overrides: tuple[str, ...], where: str) -> _Composition:
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        root, trees, parser = self._parser()
        below, above = self._session_layers()
        middle = _Layer(*parser.parse(overrides, marker(where))) if overrides else _Layer()
        for one in middle.assignments:
            if one.path == "stages":
                _refuse_stages(f"stages={show_value(one.value)}", one.source.where)

        chosen: dict[str, Choice] = {}
        choices = [*below.choices, *middle.choices, *above.choices]
        for choice in sorted(choices, key=lambda one: (one.source.rank, not one.short)):
            chosen[choice.key] = choice
        presets, selected = self._compose_presets(trees, chosen)
        content = OmegaConf.to_container(presets, resolve=False)
        assert isinstance(content, dict)
        for choice in middle.choices:
            if trees.presets.origin("stages", {choice.key: choice.option}) is not None:
                _refuse_stages(f"stages of the preset {choice.key}={choice.option}", choice.source.where)
        given = [*below.assignments, *middle.assignments, *above.assignments]
        from_presets = self._check_presets(content, root, selected, trees)
        config = OmegaConf.create(with_defaults(root, content))
        mapped, explicit = legacy.split(root, [*from_presets, *given])
        composition = _Composition(config, selected, chosen, {}, tuple(one.written or "" for one in mapped))
        origins: dict[str, Assignment] = {}
        for one in [*sorted(mapped, key=_rank), *sorted(explicit, key=_rank)]:
            value = self._check_assignment(root, one)
            try:
                OmegaConf.update(config, one.path, value, merge=True, force_add=True)
            except OmegaConfBaseException as error:  # a "${" that is no interpolation
                text = str(error).split("\n")[0]
                raise ConfigError(
                    f"{one.path}={show_value(value)} can't be read, set {one.source.where}: {text}"
                ) from None
            origins[one.path] = one
        composition.origins = origins
        named = [path for path in known_paths(root) if path.endswith(".save_dir")]
        composition.set_in = {path: self._where(path, composition) for path in named}
        self._legacy_used.update(dict.fromkeys(composition.legacy))
        return composition

    def _compose_presets(
        self, trees: ConfigTrees, chosen: Mapping[str, Choice]
    ) -> tuple[DictConfig, dict[str, str]]:
        texts = tuple(
            sorted(f"{'+' if one.append else ''}{one.key}={quoted(one.option)}" for one in chosen.values())
        )
        if texts not in self._presets:
            try:
                self._presets[texts] = compose_presets(trees.search, trees.stored, trees.name, texts)
            except ConfigError:
                trees.check({one.key: one.option for one in chosen.values()})
                raise
        return self._presets[texts]

    def _check_presets(
        self, content: dict[Any, Any], root: Block, choices: Mapping[str, str], trees: ConfigTrees
    ) -> list[Assignment]:
        """Refuse keys in presets that there are not; take legacy keys out and give them as assignments."""
        found: list[Assignment] = []
        for above, name in dotted(root, content):
            path = f"{above}.{name}" if above else name
            if find(root, path) is not None:
                source = trees.presets.origin(path, choices)
                block, _, rest = name.partition(".")
                nested = "".join(f"{{{part}: " for part in rest.split(".")) + "…" + "}" * (rest.count(".") + 1)
                raise ConfigError(
                    f"{path} is written with dots, as {name}, {source.where if source else 'in a preset'}; "
                    f"a preset's keys are nested: write {block}: {nested}"
                )
        for one in flatten(root, "", content, Source(-1, "preset", "in a preset")):
            node = find(root, one.path)
            own = one.path.split(".")[0] == "llmprof" and one.value not in (MISSING_VALUE, None)
            if isinstance(node, Leaf) and not own:
                continue
            source = trees.presets.origin(one.path, choices) or one.source
            if own and node is not None:
                self._refuse_own(one.path, source.where)
            if legacy.is_legacy(one.path):
                found.append(replace(one, source=source))
            elif node is None:
                self._refuse_unknown(root, one, source.where)
            elif not (isinstance(one.value, Mapping) and not one.value):
                value = show_value(one.value)
                raise ConfigError(
                    f"{one.path}={value} is not allowed, set {source.where}; it must be a block of keys"
                )
        for name in legacy.LEGACY_ROOTS:
            content.pop(name, None)
        return found

    def _check_assignment(self, root: Block, one: Assignment) -> Any:
        """Refuse a key that isn't there or a value of the wrong type or range; give the value."""
        where = one.source.where + (f" as {one.written}" if one.written else "")
        node = find(root, one.path)
        if node is None:
            self._refuse_unknown(root, one, where)
        if one.path.split(".")[0] == "llmprof":
            self._refuse_own(one.path, where)
        checker = Checker(self.registry, lambda path: where, lambda path: self._base(one.source))
        if isinstance(node, Block):
            hint = ""
            switch = str(one.value).lower() in ("true", "false", "yes", "no", "on", "off")
            if switch and find(root, f"{one.path}.enable") is not None:
                hint = f" (write {one.path}.enable={show_value(one.value)})"
            elif self._parser()[1].presets.options(one.path.replace(".", "/")):
                hint = f" (to choose a preset write {one.path.replace('.', '/')}={show_value(one.value)})"
            checker.refuse(one.path, one.value, f"a block of keys{hint}")
        value = one.raw if one.raw is not None and _takes_text(node.hint) else one.value
        if find(root, one.path.rpartition(".")[0]) is node or _interpolates(value) or value == "???":
            return value  # below a mapping, or known only once it is resolved: checked with the whole
        try:
            checker.rule(one.path, convert(node.hint, value))
        except Mismatch as error:
            checker.mismatch(error.below(one.path))
        return value

    def _refuse_own(self, path: str, where: str) -> NoReturn:
        example = "llmprof.test" if path == "llmprof" else path
        raise ConfigError(f"{path} can't be set {where}: each test sets it; use it in a value, as ${{{example}}}")

    def _refuse_unknown(self, root: Block, one: Assignment, where: str) -> NoReturn:
        kind, detail = unknown(root, one.path)
        raise ConfigError(f"{one.path}={show_value(one.value)}: {kind}, set {where}; {detail}")

    # -- settings of one test

    def _settings(self, composition: _Composition, test: str, stage: str) -> Settings:
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        root, _, _ = self._parser()
        config = copy.deepcopy(composition.config)
        OmegaConf.update(config, "llmprof", {"test": test, "stage": stage}, merge=False, force_add=True)
        try:
            content = OmegaConf.to_container(config, resolve=True)
        except OmegaConfBaseException as error:
            path = str(error.full_key or "")
            text = " ".join(str(error.msg or error).split("\n")[0].split())
            text = text.removeprefix("KeyError raised while resolving interpolation: ").strip('"')
            missing = re.fullmatch(r"Interpolation key '(.+)' not found", text)
            text += nearest(missing[1], known_paths(root)) if missing else ""
            raise ConfigError(f"{path}: {text}, set {self._where(path, composition)}") from None

        checker = Checker(
            self.registry,
            lambda path: self._where(path, composition),
            lambda path: self._base(self._source(path, composition)),
        )
        assert isinstance(content, dict)
        try:
            values = build(root, typing.cast("dict[str, Any]", content))
        except Mismatch as error:
            checker.mismatch(error)
        for path, value in leaves(root, values):
            checker.rule(path, value)
        for name, settings in values["pipeline"].items():
            checker.stage(name, settings)
        values["stages"] = checker.stages(values["stages"])
        values["model"] = checker.model(values["model"], values["infer"])
        values["dataset"] = checker.dataset(values["dataset"])

        node = values.pop("llmprof")
        body = to_yaml(escaped(plain(values)))
        return Settings(
            **values,
            test=test,
            stage=stage,
            choices=dict(composition.choices),
            yaml=body + to_yaml({"llmprof": node}),
            digest=hashlib.sha256(body.encode()).hexdigest(),
            set_in=composition.set_in,
        )

    def _base(self, source: Source | None) -> Path:
        from_command_line = source is not None and source.from_command_line
        return self.sources.invocation_dir if from_command_line else self.sources.rootdir

    def _source(self, path: str, composition: _Composition) -> Source | None:
        """Who set *path*: a key there or above it, else the chosen preset that has it."""
        parts = path.split(".")
        for length in range(len(parts), 0, -1):
            one = composition.origins.get(".".join(parts[:length]))
            if one is not None:
                return one.source
        return self._parser()[1].presets.origin(path, composition.choices)

    def _where(self, path: str, composition: _Composition) -> str:
        one = composition.origins.get(path)
        written = f" as {one.written}" if one is not None and one.written else ""
        source = self._source(path, composition)
        return (source.where if source is not None else "by default") + written


def _refuse_stages(what: str, where: str) -> NoReturn:
    raise ConfigError(
        f"{what} can't be set {where}: stages are chosen before tests are collected; use --llmprof-stage"
    )


def _rank(one: Assignment) -> int:
    return one.source.rank


def _takes_text(hint: Any) -> bool:
    kinds = (hint, *typing.get_args(hint))
    return str in kinds and not {int, float, bool} & {kind for kind in kinds if isinstance(kind, type)}


def _interpolates(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_interpolates(item) for item in value)
    if isinstance(value, Mapping):
        return any(_interpolates(item) for item in value.values())
    return isinstance(value, str) and "${" in value
