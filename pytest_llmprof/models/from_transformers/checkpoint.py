"""What a checkpoint is, before anything of it is loaded: one that transformers runs natively, or why not."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from pytest_llmprof.config.schema import ModelSettings
from pytest_llmprof.errors import ModelError
from pytest_llmprof.models.checkpoint import (
    ADAPTER,
    INDEX,
    SINGLE,
    check_dtypes,
    check_fetched,
    find_here,
    open_checkpoint,
    read_json,
    resolve,
    tensor_dtypes,
)
from pytest_llmprof.text.escape import one_line, quoted

WANTED = ("*.json", "*.jinja", "*.safetensors", "*.model", "*.tiktoken", "merges.txt", "vocab.txt")
"""Files that are fetched from the hub. No code is among them."""
_UNNAMED = "an unnamed method"
_TOKENIZERS = ("tokenizer.json", "*.model", "vocab.json", "vocab.txt", "*.tiktoken", "tekken.json")
_PROCESSORS = (
    *("processor_config.json", "*preprocessor_config.json", "chat_template.json", "chat_template.jinja"),
    *("additional_chat_templates/*.jinja", "tokenizer*.json", "special_tokens_map.json", "added_tokens.json"),
    *("merges.txt", *_TOKENIZERS[1:]),
)
"""Files of a processor, its tokenizer and its chat templates."""
PROCESSOR = "processor_config.json or preprocessor_config.json"
"""The files that make a processor, for messages."""
GENERATION = "generation_config.json"
_BESIDE = ("config.json", GENERATION, *_PROCESSORS)
"""Files beside the weights that transformers reads, and that change the answers."""
EXTRAS = {
    "torchvision": "models", "num2words": "models", "peft": "adapters", "accelerate": "quantized",
    "bitsandbytes": "quantized", "compressed_tensors": "quantized",
}  # fmt: skip
"""Packages that a checkpoint may ask for -> the extra that has them."""
QUANTIZED = {"bitsandbytes": "bitsandbytes", "compressed-tensors": "compressed_tensors"}
"""quant_method -> the package that reads it."""
_RELEASED = ("deepseek_vl_v2", "DeepseekOCR")
"""What the released DeepSeek-OCR's config.json calls itself."""
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Source:
    """A checkpoint that can be loaded."""

    directory: Path
    """Of the configuration, the processor and the weights."""
    weights: tuple[Path, ...]
    """Files of weights, an adapter's last."""
    beside: tuple[Path, ...]
    """Files beside them that change the answers, too."""
    config: Mapping[str, Any]
    adapter: Path | None = None
    """A LoRA directory that is laid over the weights."""

    @property
    def quantized(self) -> str | None:
        """What its weights are quantized by, None for plain ones."""
        return quant_method(self.config)


def quant_method(config: Mapping[str, Any]) -> str | None:
    """The quant_method of a config.json, None for plain weights."""
    settings = config.get("quantization_config")
    if not settings:
        return None
    return one_line(str(settings.get("quant_method", _UNNAMED)), 100) if isinstance(settings, dict) else _UNNAMED


class BaseElsewhere(ModelError):
    """The base of an adapter has to be downloaded first."""


def open_source(settings: ModelSettings, *, download: bool = True) -> Source:
    """Find `model.path` and look what it is. Raises `ModelError`, one line that says what can be used instead;
    `BaseElsewhere` where an adapter's base is not here and must not be downloaded."""
    if settings.path is None:
        raise ModelError("model.name=transformers needs model.path: a checkpoint's directory or hub id")
    directory = resolve(settings.path, settings.revision, settings.hub_timeout_s, WANTED)
    adapter = None
    if _is_adapter(directory):
        adapter, directory = directory, _base_of(directory, settings.hub_timeout_s, download)
    if next(directory.glob("*.gguf"), None) and not next(directory.glob("*.safetensors"), None):
        raise ModelError(f"{directory} holds GGUF files only, which transformers reads for no document model: "
                         "use the model's *.safetensors checkpoint")  # fmt: skip
    found = open_checkpoint(directory)
    _check_class(directory, found.config)
    if not any((directory / name).is_file() for name in ("processor_config.json", "preprocessor_config.json")):
        raise ModelError(f"{directory} has no processor ({PROCESSOR}): copy it from where the weights are from")
    if not _files(directory, _TOKENIZERS):
        raise ModelError(f"{directory} has no tokenizer ({', '.join(_TOKENIZERS)}): copy it from where the weights are "
                         "from")  # fmt: skip
    weights, beside = found.weights, _files(directory, _BESIDE)
    _check_ids(directory / "config.json", found.config)
    if (generation := directory / GENERATION).is_file():
        _check_ids(generation, read_json(generation))  # transformers goes without one that it cannot read
    if adapter is not None:
        weights += (adapter / "adapter_model.safetensors",)
        beside += (adapter / ADAPTER,)
    for file in beside:
        check_fetched(file)
    source = Source(directory, weights, beside, found.config, adapter)
    _check_quantization(source)
    if adapter is not None:
        check_dtypes(adapter, tensor_dtypes(weights[-1]))
    return source


def _files(directory: Path, names: tuple[str, ...]) -> tuple[Path, ...]:
    """The files of *directory* that one of *names*, patterns, fits; in an order that does not change."""
    found = {file for name in names for file in directory.glob(name) if file.is_file()}
    return tuple(sorted(found))


def processor_files(directory: Path) -> tuple[Path, ...]:
    """Its files of a processor, tokenizer and chat templates."""
    return _files(directory, _PROCESSORS)


def _is_adapter(directory: Path) -> bool:
    """Whether it holds an adapter alone. Some trainers put a config.json beside it."""
    return (directory / ADAPTER).is_file() and not any((directory / name).is_file() for name in (SINGLE, INDEX))


def _base_of(adapter: Path, timeout_s: float, download: bool) -> Path:
    """The directory of the weights that a LoRA directory was trained on."""
    config = read_json(adapter / ADAPTER)
    if (kind := config.get("peft_type")) != "LORA":
        raise ModelError(f"{adapter} is an adapter of the kind {one_line(str(kind), 100)}: only LORA is merged into "
                         "the weights")  # fmt: skip
    need("peft", f"{adapter} is a LoRA directory")
    if not (adapter / "adapter_model.safetensors").is_file():
        raise ModelError(f"{adapter} has no adapter_model.safetensors; pickled adapters are not read")
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(base, str) or not base:
        raise ModelError(f"{adapter / ADAPTER} names no base_model_name_or_path")
    named = f"{adapter / ADAPTER}: base_model_name_or_path"
    local = os.path.isdir(os.path.expanduser(base))
    at = None if local or not revision else str(revision)
    if not download and find_here(base, at, WANTED, named) is None:
        raise BaseElsewhere(f"{named}={base} is not in the cache")
    directory = resolve(base, at, timeout_s, WANTED, named)
    if _is_adapter(directory):
        raise ModelError(f"{named}={base} is an adapter, too: name the plain checkpoint there")
    return directory


def told(what: str, work: Callable[[], _Result]) -> _Result:
    """The result of *work*, code of transformers over a stranger's files. What it raises becomes one line after *what*.

    Running out of memory is left as it is.
    """
    import torch

    try:
        return work()
    # Processors, tokenizers, templates and configurations raise whatever their code meets.
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        shown: BaseException = error
        while isinstance(shown, ImportError) and shown.__cause__ is not None:  # it tells to look there
            shown = shown.__cause__
        plain = isinstance(shown, (ValueError, OSError, ImportError, RuntimeError)) and str(shown).strip()
        text = str(shown) if plain else f"{type(shown).__name__}: {shown}"
        raise ModelError(f"{what}: {one_line(text)}") from error


def need(package: str, why: str) -> None:
    """Raise `ModelError` where *package* is not installed."""
    if find_spec(package) is None:
        install = f"'pytest-llmprof[{EXTRAS[package]}]'" if package in EXTRAS else package
        raise ModelError(f"{why}: it needs the package {package.replace('_', '-')}: pip install {install}")


def _check_class(directory: Path, config: Mapping[str, Any]) -> None:
    """Raise `ModelError` for all but models of images and text that transformers has a class of its own for."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    kind = str(config.get("model_type"))
    where = f"{directory}: model_type {quoted(config.get('model_type'))}"
    if kind in _RELEASED:
        raise ModelError(f"{where} is DeepSeek-OCR as released: model=deepseek_ocr reads it without its code")
    if kind not in CONFIG_MAPPING_NAMES:
        why = "runs by the code in its repository alone (auto_map)" if "auto_map" in config else "is unknown"
        raise ModelError(f"{where} {why}: this transformers has no class for it, and remote code is never run; "
                         "use a checkpoint in transformers' own format, or a newer transformers")  # fmt: skip
    encoder_decoder = kind in ("vision-encoder-decoder", "udop", "florence2", "t5gemma2", "pix2struct")
    if config.get("is_encoder_decoder") or encoder_decoder:
        raise ModelError(f"{where} is an encoder-decoder, whose prefill is another: "
                         "use a decoder-only document model (docs/models.md)")  # fmt: skip
    if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        text = "reads text alone" if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else "is no model of images and text"
        raise ModelError(f"{where} {text}: use a document model (docs/models.md)")


def _check_ids(file: Path, config: Mapping[str, Any]) -> None:
    """Raise `ModelError` where a token of a config's or generation_config's is no number: transformers compares it."""
    text = config.get("text_config")
    for holder in (config, text if isinstance(text, dict) else {}):
        for name in ("eos_token_id", "bos_token_id", "pad_token_id"):
            value = holder.get(name)
            for token in value if name == "eos_token_id" and isinstance(value, list) else [value]:
                if token is not None and (type(token) is not int or abs(token) >= 1 << 63):
                    raise ModelError(f"{file} has the {name} {quoted(token)}, which is no token's number")


def _check_quantization(source: Source) -> None:
    method = source.quantized
    if method is None:
        return
    where = f"{source.directory} is quantized by {method}"
    if method not in QUANTIZED:
        raise ModelError(f"{where}: only {' and '.join(QUANTIZED)} are read; use the plain checkpoint")
    need(QUANTIZED[method], where)
    if method != "bitsandbytes":
        return
    need("accelerate", where)
    if source.adapter is not None:
        raise ModelError(f"{source.adapter}: merged into {where}, its weights would be rounded anew: "
                         "name the plain checkpoint as base_model_name_or_path")  # fmt: skip
