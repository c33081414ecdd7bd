"""From sources to settings: Hydra composes the presets, explicit keys go over them, a typed check ends it.

Hydra only chooses and merges presets. Keys are put over the result here, in the order config file, ini,
marker, command line, with legacy keys below all explicit ones; so where each value came from is known.
"""

from __future__ import annotations

import hashlib
import os
import re
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from pytest_llmprof.config import legacy
from pytest_llmprof.config.convert import Mismatch, bare, convert
from pytest_llmprof.config.interpolation import (
    depends_on,
    interpolates,
    may_name,
    put,
    resolve,
    varies,
    with_interpolations,
)
from pytest_llmprof.config.overrides import Parser
from pytest_llmprof.config.presets import Composed, Presets
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
from pytest_llmprof.config.render import PLACEHOLDERS, escaped, per_test, plain, to_yaml
from pytest_llmprof.config.schema import InferSettings, MeasureSettings, ModelSettings, Settings
from pytest_llmprof.config.tree import (
    MISSING_VALUE,
    build,
    dotted,
    find,
    is_block,
    known_paths,
    root_block,
    stage_settings,
    unknown,
    with_defaults,
)
from pytest_llmprof.config.trees import ConfigTrees, open_trees
from pytest_llmprof.config.validate import Checker, show_value
from pytest_llmprof.errors import ConfigError, nearest
from pytest_llmprof.text.secrets import masked_env


@dataclass(frozen=True)
class ConfigSources:
    """What the user gave, as the options and the ini file hold it."""

    invocation_dir: Path
    """Relative paths of the command line lie under it."""
    rootdir: Path
    """Relative paths of all other sources lie under it."""
    config_dir: Path | None = None
    """The user's configuration tree, laid over the packaged one (relative: under `invocation_dir`)."""
    config_dir_named: str = "--llmprof-config-dir"
    """What named it, for messages."""
    ini_overrides: tuple[str, ...] = ()
    cli_overrides: tuple[str, ...] = ()
    stages: tuple[str, ...] | None = None
    """Stages of `--llmprof-stage` or its ini twin, maybe comma separated; None = the key `stages`."""
    stages_from_ini: bool = False
    """Whether `stages` is the ini twin: then `stages=` on the command line beats it."""
    frozen: Path | None = None
    """A configuration that another process composed: it is the whole one, and all other sources are ignored."""


@dataclass
class Composition:
    """One composed configuration, before it is set to a test."""

    written: Mapping[str, Any]
    """The configuration as plain data, with its interpolations."""
    choices: Mapping[str, str]
    presets: Composed | None = None
    origins: Mapping[str, Assignment] = field(default_factory=dict)
    """Keys that somebody set, the winner of each."""
    by_default: str = "by default"
    """Where a value was set that neither a preset nor a key set."""
    settings: Settings | None = None
    """Those of the test they were last made for."""

    @cached_property
    def varies(self) -> bool:
        """Whether a value may differ from test to test."""
        return varies(self.written)

    def source(self, path: str) -> Source | None:
        """Who set *path*: a key there or above it, else the chosen preset that has it."""
        parts = path.split(".")
        for length in range(len(parts), 0, -1):
            one = self.origins.get(".".join(parts[:length]))
            if one is not None:
                return one.source
        return self.presets.origin(path) if self.presets is not None else None

    def comment(self, path: str) -> str:
        """Who set *path*, for the configuration that is shown; "" where it is as packaged."""
        source = self.source(path)
        return source.comment if source is not None else ""

    def where(self, path: str) -> str:
        """Where *path*, or a key below it, was set, for errors."""
        below = [one for key, one in self.origins.items() if key.startswith(f"{path}.")]
        one = self.origins.get(path)
        source = below[-1].source if below and one is None else self.source(path)
        written = f" as {one.written}" if one is not None and one.written else ""
        return (source.where if source is not None else self.by_default) + written


class Composer:
    """The configuration of one pytest session. Cheap to make; composes when first asked.

    Raises `ConfigError`, one line, from each method that composes.
    """

    def __init__(self, sources: ConfigSources, registry: Registry) -> None:
        self.sources = sources
        self.registry = registry
        self._compositions: dict[tuple[tuple[str, ...], str], Composition] = {}
        self._by_presets: dict[int, tuple[Mapping[str, Any], list[Assignment]]] = {}
        self._built: dict[tuple[str, str], Any] = {}
        self._engines: dict[tuple[ModelSettings, InferSettings, MeasureSettings], InferSettings] = {}
        self._legacy_used: dict[str, None] = {}

    # -- what the plugin asks for

    def session(self) -> Settings:
        """Check the session's configuration, with placeholders for the test and its stage."""
        return self._session

    @cached_property
    def _session(self) -> Settings:
        return self.settings(self._compose((), ""), *PLACEHOLDERS)

    def for_test(
        self, marker_overrides: tuple[str, ...], marker_where: str, test: str, stage: str
    ) -> Settings:
        """The configuration of *test* in *stage*.

        *marker_overrides* are its marks' overrides in rising precedence (module, class, function, parameter);
        *marker_where* says where they stand ("tests/test_x.py:12"). *test* is its directory under the run
        directory. Presets are composed once for each set of presets chosen, however many tests there are.
        """
        return self.settings(self._compose(tuple(marker_overrides), marker_where), test, stage)

    def show(self) -> str:
        """The session's configuration as YAML, resolved, with a comment on each value that somebody set."""
        composition = self._compose((), "")
        values, _ = self._resolved(composition, *PLACEHOLDERS)
        return to_yaml(masked_env(escaped(plain(values))), _with_reason(composition, values.infer))

    def saved(self) -> str:
        """The same to be saved: what depends on the test is not resolved, so any test can use it."""
        composition = self._compose((), "")
        values, content = self._resolved(composition, *PLACEHOLDERS)
        saved = self._to_save(composition, values, content)
        node = dict.fromkeys(("test", "stage"), MISSING_VALUE)
        return to_yaml({**saved, "llmprof": node}, _with_reason(composition, values.infer))

    @property
    def legacy_keys(self) -> tuple[str, ...]:
        """The legacy keys used so far, in the session or by a marker: "outputs.x (use pipeline...)"."""
        return tuple(self._legacy_used)

    @property
    def presets(self) -> Presets:
        """The presets of the session's configuration trees."""
        return self._trees.presets

    # -- composing

    @cached_property
    def _trees(self) -> ConfigTrees:
        given = self.sources
        return open_trees(given.config_dir, given.invocation_dir, self.registry, given.config_dir_named)

    @cached_property
    def root(self) -> type:
        """The tree of all keys."""
        return root_block(self.registry, self._trees.stages)

    def _node(self, path: str) -> Any:
        return find(self.root, path)

    @cached_property
    def _parser(self) -> Parser:
        return Parser(self.root, self.presets, self.registry)

    @cached_property
    def _given(self) -> tuple[list[Assignment], list[Choice]]:
        """What the user's config.yaml, the ini file and the command line set; the sources say which is stronger."""
        assignments: list[Assignment] = []
        trees = self._trees
        if trees.user_source is not None:
            body = dict(trees.user_body)
            node = body.get("llmprof")
            if isinstance(node, Mapping) and {"test", "stage"} <= set(node):
                # A saved config.yaml can serve as a configuration: its test and stage were another run's.
                body["llmprof"] = {key: value for key, value in node.items() if key not in ("test", "stage")}
                body = per_test(body) if (node["test"], node["stage"]) == PLACEHOLDERS else body
            set_there = flatten(self.root, "", body, trees.user_source)
            # A section whose keys are all commented out reads as null: it sets nothing.
            assignments += [one for one in set_there if one.value is not None or not is_block(self._node(one.path))]
        ini, ini_choices = self._parser.parse(self.sources.ini_overrides, INI)
        cli, cli_choices = self._parser.parse(self.sources.cli_overrides, COMMAND_LINE)
        assignments += [*ini, *cli]
        if self.sources.stages is not None:
            names = [name.strip() for text in self.sources.stages for name in text.split(",")]
            source = STAGE_INI if self.sources.stages_from_ini else STAGE_OPTION
            assignments.append(Assignment("stages", [name for name in names if name], source))
        return assignments, [*ini_choices, *cli_choices]

    def _compose(self, overrides: tuple[str, ...], where: str) -> Composition:
        key = (overrides, where if overrides else "")
        if key not in self._compositions:
            self._compositions[key] = self._compose_new(overrides, where)
        return self._compositions[key]

    def _compose_new(self, overrides: tuple[str, ...], where: str) -> Composition:
        assignments, choices = self._given
        marked, marked_choices = self._parser.parse(overrides, marker(where))
        for one in marked:
            if one.path == "stages":
                _refuse_stages(f"stages={show_value(one.value)}", one.source.where)
        rising = sorted([*choices, *marked_choices], key=lambda one: (one.source.rank, not one.short))
        presets = self.presets.compose({one.key: one for one in rising}.values())
        for choice in marked_choices:
            if presets.origin("stages", choice.key) is not None:
                _refuse_stages(f"stages of the preset {choice.key}={choice.option}", choice.source.where)
        written, from_presets = self._checked(presets)
        given = sorted([*from_presets, *assignments, *marked], key=lambda one: one.source.rank)
        mapped, explicit = legacy.split(self.root, self.registry.legacy_keys, given)
        origins: dict[str, Assignment] = {}
        for one in [*mapped, *explicit]:
            written = put(written, tuple(one.path.split(".")), self._check_assignment(one))
            origins[one.path] = one
        self._legacy_used.update(dict.fromkeys(f"{one.written} (use {one.path})" for one in mapped))
        return Composition(written, presets.choices, presets, origins)

    def _checked(self, presets: Composed) -> tuple[Mapping[str, Any], list[Assignment]]:
        """What *presets* compose to, with all keys, and the legacy keys in them as assignments; done once for each."""
        if id(presets) not in self._by_presets:
            from omegaconf import OmegaConf

            content = typing.cast("dict[str, Any]", OmegaConf.to_container(presets.config, resolve=False))
            found = self._check_presets(content, presets)
            self._by_presets[id(presets)] = with_defaults(self.root, content), found
        return self._by_presets[id(presets)]

    def _check_presets(self, content: dict[Any, Any], presets: Composed) -> list[Assignment]:
        """Reject unknown keys in presets; take legacy keys out of *content* and give them as assignments."""
        root = self.root
        for above, name in dotted(root, content):
            path = f"{above}.{name}" if above else name
            if find(root, path) is not None:
                source = presets.origin(path)
                block, _, rest = name.partition(".")
                nested = "".join(f"{{{part}: " for part in rest.split(".")) + "…" + "}" * (rest.count(".") + 1)
                raise ConfigError(
                    f"{path} is written with dots, as {name}, {source.where if source else 'in a preset'}; "
                    f"a preset's keys are nested: write {block}: {nested}"
                )
        found: list[Assignment] = []
        roots = legacy.roots(self.registry.legacy_keys)
        for one in flatten(root, "", content, Source(-1, "preset", "in a preset")):
            node = find(root, one.path)
            top = one.path.split(".")[0]
            own = top == "llmprof" and one.value not in (MISSING_VALUE, None)
            if node is not None and not is_block(node) and not own:
                continue
            one = replace(one, source=presets.origin(one.path) or one.source)
            if own and node is not None:
                self._refuse_own(one.path, one.source.where)
            if top in roots:
                found.append(one)
            elif node is None:
                for block, (names, instead) in presets.nested.items():
                    if one.path.startswith(f"{block}.") and find(root, block) is None:
                        raise ConfigError(f"{names}, which would set {one.path}: {instead}")
                self._refuse_unknown(one, one.source.where)
            elif one.value != {}:
                raise ConfigError(
                    f"{one.path}={show_value(one.value)} is not allowed, set {one.source.where}; "
                    "it must be a block of keys"
                )
        for name in roots:
            content.pop(name, None)
        return found

    def _check_assignment(self, one: Assignment) -> Any:
        """Reject an unknown key or a value that its type does not allow; give the value."""
        root = self.root
        where = one.source.where + (f" as {one.written}" if one.written else "")
        node = find(root, one.path)
        if node is None:
            self._refuse_unknown(one, where)
        if one.path.split(".")[0] == "llmprof":
            self._refuse_own(one.path, where)
        checker = Checker(self.registry, lambda path: where, lambda path: self._base(one.source))
        if is_block(node):
            hint = ""
            switch = str(one.value).lower() in ("true", "false", "yes", "no", "on", "off")
            if switch and find(root, f"{one.path}.enable") is not None:
                hint = f" (write {one.path}.enable={show_value(one.value)})"
            elif self.presets.options(one.path.replace(".", "/")):
                hint = f" (to choose a preset write {one.path.replace('.', '/')}={show_value(one.value)})"
            checker.refuse(one.path, one.value, f"a block of keys{hint}")
        value = one.raw if one.raw is not None and _takes_text(node) else one.value
        if interpolates(value):
            _check_grammar(one, value)
        elif find(root, one.path.rpartition(".")[0]) is not node and value != MISSING_VALUE:
            try:
                convert(node, value)
            except Mismatch as error:
                checker.mismatch(error.below(one.path))
        return value  # below a mapping, or known only once it is resolved, it is checked with the whole

    def _refuse_own(self, path: str, where: str) -> NoReturn:
        example = "llmprof.test" if path == "llmprof" else path
        raise ConfigError(f"{path} can't be set {where}: each test sets it; use it in a value, as ${{{example}}}")

    def _refuse_unknown(self, one: Assignment, where: str) -> NoReturn:
        kind, detail = unknown(self.root, one.path, self.registry)
        raise ConfigError(f"{one.path}={show_value(one.value)}: {kind}, set {where}; {detail}")

    # -- settings of one test

    def settings(self, composition: Composition, test: str, stage: str) -> Settings:
        """*composition* as the settings of *test* in *stage*."""
        if composition.settings is None or composition.varies:
            values, content = self._resolved(composition, test, stage)
            specs = self.registry.stages
            pipeline = {name: stage_settings(specs[name], getattr(values.pipeline, name)) for name in specs}
            composition.settings = Settings(
                stages=values.stages,
                model=values.model,
                infer=values.infer,
                measure=values.measure,
                gate=values.gate,
                dataset=values.dataset,
                pipeline=MappingProxyType(pipeline),
                test=test,
                stage=stage,
                choices=dict(composition.choices),
                saved=cache(partial(self._saved, composition, values, content)),
                set_in=composition.where if composition.presets is not None else None,
            )
        return replace(composition.settings, test=test, stage=stage)

    def _resolved(self, composition: Composition, test: str, stage: str) -> tuple[Any, Mapping[str, Any]]:
        """*composition* for *test* in *stage*: the tree of keys, typed and checked, and the plain data it is of.

        `infer.engine=auto` has become an engine in it.
        """
        written = {**composition.written, "llmprof": {"test": test, "stage": stage}}
        values, content, checker = self._with_engine(composition, written)
        if values.infer.engine_reason is not None and may_name(written, "engine"):
            chosen = values.infer
            values, content, _ = self._with_engine(composition, put(written, ("infer", "engine"), chosen.engine))
            values = replace(values, infer=replace(values.infer, engine_reason=chosen.engine_reason))
        for name, spec in self.registry.stages.items():
            checker.stage(spec, stage_settings(spec, getattr(values.pipeline, name)))
        stages, dataset = checker.stages(values.stages), checker.dataset(values.dataset)
        return replace(values, stages=stages, dataset=dataset), content

    def _with_engine(
        self, composition: Composition, written: Mapping[str, Any]
    ) -> tuple[Any, Mapping[str, Any], Checker]:
        """*written*, resolved, with a checked model and its engine; what checks the rest, which may name the engine."""
        from omegaconf.errors import OmegaConfBaseException

        try:
            content = resolve(written)
        except OmegaConfBaseException as error:
            path = str(error.full_key or "")
            text = " ".join(str(error.msg or error).split("\n")[0].split())
            text = text.removeprefix("KeyError raised while resolving interpolation: ").strip('"')
            missing = re.fullmatch(r"Interpolation key '(.+)' not found", text)
            text += nearest(missing[1], known_paths(self.root)) if missing else ""
            raise ConfigError(f"{path}: {text}, set {composition.where(path)}") from None
        checker = Checker(self.registry, composition.where, lambda path: self._base(composition.source(path)))
        try:
            values = build(self.root, content, self._built)
        except Mismatch as error:
            checker.mismatch(error)
        model = checker.model(values.model, values.infer)
        given = model, values.infer, values.measure
        if given not in self._engines:
            self._engines[given] = checker.engine(*given)
        return replace(values, model=model, infer=self._engines[given]), content, checker

    def _saved(self, composition: Composition, values: Any, content: Mapping[str, Any]) -> tuple[str, str]:
        """The configuration as YAML to be saved, without the test and its stage, and its digest.

        The digest is that of the same with environment variables resolved, as they may differ in another run, and
        without the gates, which change nothing in what is measured.
        """
        text = to_yaml(self._to_save(composition, values, content))
        resolved = self._to_save(composition, values, content, ("test",))
        resolved.pop("gate")
        return text, hashlib.sha256(to_yaml(resolved).encode()).hexdigest()

    def _to_save(
        self,
        composition: Composition,
        values: Any,
        content: Mapping[str, Any],
        kept: Collection[str] = ("test", "environment"),
    ) -> dict[str, Any]:
        """*values* as plain data to be saved, without the test and its stage."""
        raw = {**composition.written}
        for key in ("model.path", "dataset.root", "dataset.subset"):
            block, name = key.split(".")
            written, given = raw[block][name], content[block][name]
            if not isinstance(given, str) or "environment" not in depends_on(written, composition.written):
                written = None  # a path is saved absolute: as it is written it would be relative to another directory
            elif given != getattr(getattr(values, block), name) and not os.path.isabs(os.path.expanduser(given)):
                written = f"{escaped(str(self._base(composition.source(key))))}/{written}"
            raw = put(raw, (block, name), written)
        saved = with_interpolations(plain(values), raw, composition.written, kept)
        saved.pop("llmprof")
        return typing.cast("dict[str, Any]", masked_env(saved))

    def _base(self, source: Source | None) -> Path:
        from_command_line = source is not None and source.from_command_line
        return self.sources.invocation_dir if from_command_line else self.sources.rootdir


def _with_reason(composition: Composition, infer: InferSettings) -> Callable[[str], str]:
    """The comments of *composition*; the engine's says why `auto` became it."""

    def comment(path: str) -> str:
        found = composition.comment(path)
        if path != "infer.engine" or infer.engine_reason is None:
            return found
        return f"auto{f' ({found})' if found else ''}: {infer.engine_reason}"

    return comment


def _refuse_stages(what: str, where: str) -> NoReturn:
    raise ConfigError(
        f"{what} can't be set {where}: stages are chosen before tests are collected; use --llmprof-stage"
    )


def _takes_text(hint: Any) -> bool:
    kinds = {bare(kind) for kind in (bare(hint), *typing.get_args(bare(hint)))}
    return str in kinds and not {int, float, bool} & kinds


def _check_grammar(one: Assignment, value: Any) -> None:
    """Raise for a text with a "${" that is no interpolation."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        OmegaConf.update(OmegaConf.create(), one.path, value, force_add=True)
    except OmegaConfBaseException as error:
        text = str(error).split("\n")[0]
        raise ConfigError(
            f"{one.path}={show_value(value)} can't be read, set {one.source.where}: {text}"
        ) from None
