"""The model that stays loaded between tests."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace

from pytest_llmprof.config.schema import Settings
from pytest_llmprof.errors import EngineUnavailable, ModelError, error_line
from pytest_llmprof.models.base import LoadedModel, ModelPlugin


def model_key(settings: Settings) -> Hashable:
    """Equal for settings that one loaded model serves."""
    return replace(settings.model, max_new_tokens=0, hub_timeout_s=1.0), settings.infer.engine


@dataclass
class ModelCache:
    """Keeps one model, by its configuration, and frees it before another is loaded."""

    plugins: Mapping[str, ModelPlugin]
    close_errors: list[str] = field(default_factory=list)
    """Errors in closing models, a line each. No test fails for them."""
    _key: object = None
    _model: LoadedModel | None = None

    def get(self, settings: Settings, progress: Callable[[str], None]) -> LoadedModel:
        """The model of *settings*, loaded where another one or none is kept."""
        key = model_key(settings)
        if self._model is None or self._key != key:
            self.close()
            progress(f"loading {settings.choices.get('model', settings.model.name)}")
            self._model = self._load(settings)
            self._key = key
        return self._model

    def _load(self, settings: Settings) -> LoadedModel:
        from pytest_llmprof.stages.failures import free_memory_of, out_of_memory

        try:
            return self.plugins[settings.model.name].load(settings.model, settings.infer)
        except EngineUnavailable as error:
            if settings.infer.engine_reason is None:
                raise
            raise EngineUnavailable(f"infer.engine={settings.infer.engine_shown}: {error}") from None
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            text = " ".join(str(error).split())
            free_memory_of(error, "cuda")
            raise ModelError(f"out of device memory while the model was loaded: {text[:300]}") from None

    def close(self) -> None:
        """Free the model. An error of its own `close` goes to `close_errors`."""
        model, self._model, self._key = self._model, None, None
        if model is not None:
            try:
                model.close()
            except Exception as error:  # noqa: BLE001 - what a plugin raises is not known
                self.close_errors.append(f"model {model.info.name} could not be closed: {error_line(error)}")
