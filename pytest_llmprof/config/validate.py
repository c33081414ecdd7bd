"""What the typed settings may hold: ranges, names, what goes together, and paths that exist."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from pytest_llmprof.config.convert import Mismatch
from pytest_llmprof.config.paths import absolute, is_hub_id, is_local
from pytest_llmprof.config.registry import Registry
from pytest_llmprof.config.schema import DatasetSettings, InferSettings, ModelSettings, StageSettings
from pytest_llmprof.errors import ConfigError, nearest

__all__ = ["RULES", "Checker", "show_value"]

PLACEHOLDERS = ("<test>", "<stage>")
"""What stands for a test and its stage where the session's configuration is checked."""


def _at_least(least: int) -> tuple[str, Callable[[Any], bool]]:
    return f"an integer >= {least}", lambda value: value >= least


def _one_of(*names: str) -> tuple[str, Callable[[Any], bool]]:
    return f"one of {', '.join(names)}", lambda value: value in names


_SEED: tuple[str, Callable[[Any], bool]] = ("an integer from 0 to 2**63 - 1", lambda value: 0 <= value < 2**63)

RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "stages": ("a list of at least one stage", lambda value: bool(value)),
    "model.device": (
        "auto, cpu, cuda or cuda:N",
        lambda value: re.fullmatch(r"auto|cpu|cuda(:\d+)?", value) is not None,
    ),
    "model.dtype": _one_of("auto", "float32", "bfloat16", "float16"),
    "model.weights": _one_of("checkpoint", "embedded", "random"),
    "model.size": _one_of("full", "tiny"),
    "model.seed": _SEED,
    "model.max_new_tokens": _at_least(1),
    "infer.prompt": ("markdown, free or a prompt's text", lambda value: bool(value.strip())),
    "infer.max_new_tokens": _at_least(1),
    "infer.no_repeat_ngram_size": _at_least(0),
    "infer.batch_size": _at_least(1),
    "measure.rounds": _at_least(1),
    "measure.warmup": _at_least(0),
    "dataset.pattern": ("a list of at least one glob pattern", lambda value: bool(value) and all(value)),
    "dataset.subset": (
        "a text file, a list of at least one page name, or null",
        lambda value: value is None or bool(value),
    ),
    "dataset.limit": ("an integer >= 1, or null for all pages", lambda value: value is None or value >= 1),
    "dataset.seed": _SEED,
}
"""Key -> (what is allowed, whether a value of the right type is)."""


def show_value(value: object) -> str:
    """A value as one would type it, on one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{','.join(show_value(item) for item in value)}]"
    text = str(value)
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
        """Raise the `ConfigError` for a value that isn't allowed."""
        hint = nearest(value, names) if isinstance(value, str) else ""
        raise ConfigError(
            f"{path}={show_value(value)} is not allowed, set {self.where(path)}; it must be {allowed}{hint}"
        )

    def rule(self, path: str, value: Any) -> None:
        """Check one key's own range, where it has one."""
        if path in RULES:
            allowed, holds = RULES[path]
            if not holds(value):
                names = allowed.removeprefix("one of ").split(", ") if allowed.startswith("one of ") else ()
                self.refuse(path, value, allowed, names)

    def mismatch(self, error: Mismatch) -> NoReturn:
        """Raise the `ConfigError` for a value of the wrong type, or one that must be set."""
        if error.value == "???":
            raise ConfigError(
                f"{error.key} must be set, it is left open {self.where(error.key)}: "
                f"--llmprof-override {error.key}=VALUE"
            )
        quote = "quote" in error.allowed
        allowed = error.allowed if quote or error.key not in RULES else RULES[error.key][0]
        self.refuse(error.key, error.value, allowed)

    def _name(self, path: str, value: str, names: Iterable[str], what: str) -> None:
        names = tuple(names)
        if value not in names:
            self.refuse(path, value, f"{what}: {', '.join(names)}", names)

    def model(self, model: ModelSettings, infer: InferSettings) -> ModelSettings:
        """Check the model and how it generates against its plugin; give it with its path resolved."""
        self._name("model.name", model.name, self.registry.models, "a registered model")
        plugin = self.registry.models[model.name]
        self._name("model.mode", model.mode, plugin.modes, f"a mode of {model.name}")
        self._name("infer.engine", infer.engine, plugin.engines, f"an engine of {model.name}")
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
                "--llmprof-override model.path=/models/DeepSeek-OCR"
            )
        if any(word in model.path for word in PLACEHOLDERS):
            return model
        base = self.base("model.path")
        if not is_local(model.path, base):
            if not is_hub_id(model.path):
                self._missing("model.path", model.path, absolute(model.path, base))
            return model
        path = self._directory("model.path", model.path)
        if model.revision is not None:
            raise ConfigError(
                f"model.revision={model.revision}, set {self.where('model.revision')}, goes with a hub id, "
                f"but model.path={path} is a directory"
            )
        return replace(model, path=str(path))

    def dataset(self, dataset: DatasetSettings) -> DatasetSettings:
        """Check the dataset; give it with its paths resolved."""
        self._name("dataset.name", dataset.name, self.registry.datasets, "a registered dataset")
        if dataset.root is not None and not _has_placeholder(dataset.root):
            dataset = replace(dataset, root=str(self._directory("dataset.root", dataset.root)))
        if isinstance(dataset.subset, str) and not _has_placeholder(dataset.subset):
            path = absolute(dataset.subset, self.base("dataset.subset"))
            if not path.exists():
                self._missing("dataset.subset", dataset.subset, path)
            if not path.is_file():
                where = self.where("dataset.subset")
                raise ConfigError(f"dataset.subset={dataset.subset}: {path} is not a file, set {where}")
            if not path.read_bytes().strip():
                raise ConfigError(
                    f"dataset.subset={dataset.subset}: {path} is empty, set {self.where('dataset.subset')}; "
                    "write one page name a line"
                )
            dataset = replace(dataset, subset=str(path))
        return dataset

    def stage(self, name: str, settings: StageSettings) -> None:
        """Check a stage's own options and the models' output options."""
        spec = self.registry.stages[name]
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

    def _missing(self, key: str, value: str, path: Path) -> NoReturn:
        raise ConfigError(f"{key}={value}: {path} does not exist, set {self.where(key)}")

    def _directory(self, key: str, value: str) -> Path:
        path = absolute(value, self.base(key))
        if not path.exists():
            self._missing(key, value, path)
        if not path.is_dir():
            raise ConfigError(f"{key}={value}: {path} is not a directory, set {self.where(key)}")
        try:
            empty = next(path.iterdir(), None) is None
        except OSError as error:
            raise ConfigError(
                f"{key}={value}: {path} cannot be read ({error.strerror}), set {self.where(key)}"
            ) from error
        if empty:
            raise ConfigError(f"{key}={value}: {path} is an empty directory, set {self.where(key)}")
        return path


def _has_placeholder(value: str) -> bool:
    return any(word in value for word in PLACEHOLDERS)
