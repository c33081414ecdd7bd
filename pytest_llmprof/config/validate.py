"""What types can't say of the settings: registered names, what goes together, and paths that must exist."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from pytest_llmprof.config.convert import Mismatch
from pytest_llmprof.config.paths import absolute, is_hub_id, is_local, why_unusable
from pytest_llmprof.config.registry import Registry, StageSpec
from pytest_llmprof.config.render import PLACEHOLDERS
from pytest_llmprof.config.schema import (
    AUTO,
    DatasetSettings,
    InferSettings,
    MeasureSettings,
    ModelSettings,
    StageSettings,
)
from pytest_llmprof.config.tree import MISSING_VALUE
from pytest_llmprof.errors import ConfigError, nearest
from pytest_llmprof.text.escape import one_line, shorten

_LONGEST = 300


def show_value(value: object) -> str:
    """A value as one would type it, on one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{','.join(show_value(item) for item in value)}]"
    text = shorten(str(value), _LONGEST)
    return repr(text) if not text or not text.isprintable() or text != text.strip() else text


@dataclass(frozen=True)
class Checker:
    """Checks of one composition."""

    registry: Registry
    where: Callable[[str], str]
    """Says where a key was set: "on the command line"."""
    base: Callable[[str], Path]
    """The directory that a key's relative path lies under."""

    def refuse(self, path: str, value: object, allowed: str, names: Iterable[str] = ()) -> NoReturn:
        """Raise the `ConfigError` for a value that isn't allowed; *names* are those of "one of a, b" by default."""
        if not names and allowed.startswith("one of "):
            names = allowed.removeprefix("one of ").split(", ")
        hint = nearest(value, names) if isinstance(value, str) else ""
        raise ConfigError(
            f"{path}={show_value(value)} is not allowed, set {self.where(path)}; it must be {allowed}{hint}"
        )

    def mismatch(self, error: Mismatch) -> NoReturn:
        """Raise the `ConfigError` for a value that its type does not allow, or one that must be set."""
        if error.value == MISSING_VALUE:
            raise ConfigError(
                f"{error.key} must be set, it is left open {self.where(error.key)}: "
                f"--llmprof-override {error.key}=VALUE"
            )
        self.refuse(error.key, error.value, error.allowed)

    def _name(self, path: str, value: str, names: Collection[str], what: str) -> None:
        if value not in names:
            self.refuse(path, value, f"{what}: {', '.join(names)}", names)

    def model(self, model: ModelSettings, infer: InferSettings) -> ModelSettings:
        """Check the model and how it generates against its plugin; give it with its path resolved."""
        self._name("model.name", model.name, self.registry.models, "a registered model")
        plugin = self.registry.models[model.name]
        self._name("model.mode", model.mode, plugin.modes, f"a mode of {model.name}")
        engines = dict.fromkeys((AUTO, *plugin.engines)) if plugin.engines else ()
        self._name("infer.engine", infer.engine, engines, f"an engine of {model.name}")
        self._name("infer.generation", infer.generation, plugin.generations, f"a way of {model.name} to generate")
        if plugin.check_model is not None:
            for key, value, allowed in plugin.check_model(model):
                self.refuse(f"model.{key}", value, allowed)
        if model.weights != "checkpoint":
            if model.path is not None:
                raise ConfigError(
                    f"model.path={model.path}, set {self.where('model.path')}, has no effect with "
                    f"model.weights={model.weights}: choose a preset that reads a checkpoint, "
                    "--llmprof-override model=deepseek_ocr"
                )
            return model
        if not model.path:
            raise ConfigError(
                "model.path must be set where model.weights=checkpoint: a directory or a hub id, "
                "--llmprof-override model.path=/path/to/checkpoint"
            )
        if _has_placeholder(model.path):
            return model
        if is_hub_id(model.path) and not is_local(model.path, self.base("model.path")):
            return model
        path = self._directory("model.path", model.path)
        if model.revision is not None:
            raise ConfigError(
                f"model.revision={model.revision}, set {self.where('model.revision')}, goes with a hub id, "
                f"but model.path={path} is a directory"
            )
        return replace(model, path=str(path))

    def engine(self, model: ModelSettings, infer: InferSettings, measure: MeasureSettings) -> InferSettings:
        """*infer* with the engine that `auto` stands for here, and why it is that one."""
        plugin = self.registry.models[model.name]
        if infer.engine != AUTO or AUTO in plugin.engines:
            return infer
        if plugin.choose_engine is None:
            name, reason = plugin.engines[0], f"the {'first' if plugin.engines[1:] else 'only'} engine of {model.name}"
        else:
            name, reason = plugin.choose_engine(model, infer, measure)
            if name not in plugin.engines:
                raise ConfigError(
                    f"infer.engine=auto: the plugin of the model {model.name} chose {show_value(name)}, which is none "
                    f"of its engines: {', '.join(plugin.engines)}"
                )
        return replace(infer, engine=name, engine_reason=one_line(reason))

    def dataset(self, dataset: DatasetSettings) -> DatasetSettings:
        """Check the dataset; give it with its paths resolved."""
        self._name("dataset.name", dataset.name, self.registry.datasets, "a registered dataset")
        if dataset.root is not None and not _has_placeholder(dataset.root):
            root = self._directory("dataset.root", dataset.root)
            dataset = replace(dataset, root=str(root), root_as_given=dataset.root)
        if isinstance(dataset.subset, str) and not _has_placeholder(dataset.subset):
            path = self._existing("dataset.subset", dataset.subset)
            if not path.is_file():
                self._wrong_path("dataset.subset", dataset.subset, f"{path} is not a file")
            if not path.read_bytes().strip():
                self._wrong_path("dataset.subset", dataset.subset, f"{path} is empty", "; write one page name a line")
            dataset = replace(dataset, subset=str(path))
        return dataset

    def stage(self, spec: StageSpec, settings: StageSettings) -> None:
        """Check a stage's own options and the models' output options."""
        name = spec.name
        if spec.check is not None:
            for key, value, allowed in spec.check(settings.options):
                self.refuse(f"pipeline.{name}.{key}", value, allowed)
        if settings.output is None:
            return
        for model in self.registry.models.values():
            if model.check_extra is not None and model.name in settings.output.extra:
                for key, value, allowed in model.check_extra(settings.output.extra[model.name]):
                    self.refuse(f"pipeline.{name}.output.extra.{model.name}.{key}", value, allowed)

    def stages(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """The stages by name: each known, each once."""
        for name in names:
            if name not in self.registry.stages:
                known = tuple(self.registry.stages)
                raise ConfigError(
                    f"stages: unknown stage {name!r}, set {self.where('stages')}; "
                    f"the stages are {', '.join(known)}{nearest(name, known)}"
                )
        return tuple(dict.fromkeys(names))

    def _wrong_path(self, key: str, value: str, why: str, hint: str = "") -> NoReturn:
        raise ConfigError(f"{key}={show_value(value)}: {why}, set {self.where(key)}{hint}")

    def _existing(self, key: str, value: str) -> Path:
        if not value.strip():  # a shell variable that is not set; it would be the directory that this one starts in
            self._wrong_path(key, value, "it is empty", "; name a path, or null for none")
        path = absolute(value, self.base(key))
        if why := why_unusable(path):
            self._wrong_path(key, value, why)
        if not path.exists():
            self._wrong_path(key, value, f"{path} does not exist")
        return path

    def _directory(self, key: str, value: str) -> Path:
        path = self._existing(key, value)
        if not path.is_dir():
            self._wrong_path(key, value, f"{path} is not a directory")
        try:
            if (first := next(path.iterdir(), None)) is not None:
                os.lstat(first)  # one may be allowed to list its names, and no more
        except OSError as error:
            self._wrong_path(key, value, f"{path} can't be read ({error.strerror})")
        if first is None:
            self._wrong_path(key, value, f"{path} is an empty directory")
        return path


def _has_placeholder(value: str) -> bool:
    return any(word in value for word in PLACEHOLDERS)
