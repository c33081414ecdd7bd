"""Load a checkpoint: its processor, its weights, and what its generation_config asks for."""

from __future__ import annotations

import logging
import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from pytest_llmprof.config.schema import AUTO
from pytest_llmprof.errors import EngineUnavailable, ModelError
from pytest_llmprof.measure.collector import paused_garbage_collector
from pytest_llmprof.models.base import BoxFormat
from pytest_llmprof.models.checkpoint import check_tensors, check_text, digest, silenced, total_bytes
from pytest_llmprof.models.device import check_choice, pick_device, pick_dtype
from pytest_llmprof.models.engine_choice import older
from pytest_llmprof.models.from_transformers import ENGINES, prompts
from pytest_llmprof.models.from_transformers.auto import TORCH
from pytest_llmprof.models.from_transformers.checkpoint import (
    EXTRAS,
    GENERATION,
    PROCESSOR,
    Source,
    need,
    open_source,
    processor_files,
    told,
)
from pytest_llmprof.models.graphs import require_compiler
from pytest_llmprof.text.escape import one_line, quoted

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from pytest_llmprof.config.schema import InferSettings, ModelSettings
    from pytest_llmprof.models.from_transformers.model import TransformersModel

_PACKAGES = (*EXTRAS, "sentencepiece", "tiktoken", "av", "librosa")
"""Packages that transformers may ask for."""
_PACKED_ROWS = 32
"""bitsandbytes packs so many rows of a weight together."""
_Result = TypeVar("_Result")


def check_compiler(device: torch.device) -> None:
    """Raise `EngineUnavailable` where `compiled` does not work on *device*."""
    import torch

    if older(torch.__version__, TORCH):
        raise EngineUnavailable(
            f"infer=compiled: torch {torch.__version__} cannot compile this model; "
            "use a newer torch, or infer=reference"
        )
    require_compiler("compiled", device)


def load(settings: ModelSettings, infer: InferSettings, formats: Mapping[str, BoxFormat]) -> TransformersModel:
    """Load the model. Raises `ModelError` with one line for all that the user can fix."""
    engine = ENGINES[0] if infer.engine == AUTO else infer.engine
    check_choice("infer.engine", engine, ENGINES)
    device = pick_device(settings.device)
    dtype = pick_dtype(settings.dtype, device)
    if engine == "compiled":
        check_compiler(device)
    source = open_source(settings)
    if engine == "compiled":
        check_compilable(source)
    check_memory(source, device)
    with paused_garbage_collector():
        from pytest_llmprof.models.from_transformers.model import TransformersModel

    processor = read_processor(source)
    check_family(source, processor, settings, infer)
    note = what_is_left_out(source, processor, templated=settings.family.template is None)
    network = load_weights(source, device, dtype)
    return TransformersModel(
        network,
        processor,
        settings,
        engine=engine,
        digest=digest(source.weights, source.beside),
        boxes=formats[settings.family.boxes],
        where=str(source.directory),
        quantized=source.quantized,
        note=note,
    )


def check_family(source: Source, processor: Any, settings: ModelSettings, infer: InferSettings) -> None:
    """Raise `ModelError` where `model.family` or `infer.prompt` does not fit *processor*: before the weights are read,
    not at each page."""
    family, where = settings.family, str(source.directory)
    prompts.whole_prompt(processor, family, prompts.asked(family, infer.prompt)[1], where)
    vocabulary = processor.tokenizer.get_vocab()
    for token in family.stop:
        if token not in vocabulary:
            raise ModelError(f"{where}: model.family.stop names {quoted(token)}, which the tokenizer does not have: "
                             "another model.family than the checkpoint's")  # fmt: skip


def read_processor(source: Source) -> Any:
    """The checkpoint's processor. Raises `ModelError` where it cannot be made, or is not one of images and text; and
    where its config or generation_config cannot be read, or else the processor or the weights would seem broken."""
    with paused_garbage_collector():
        import transformers

    _read(source, "config.json", lambda: _config(source))
    if (source.directory / GENERATION).is_file():
        _read(source, GENERATION, lambda: transformers.GenerationConfig.from_pretrained(source.directory,
              local_files_only=True))  # fmt: skip
    try:
        processor = _read(source, "the processor", lambda: transformers.AutoProcessor.from_pretrained(source.directory,
                          local_files_only=True, trust_remote_code=False), source.beside)  # fmt: skip
    except ModelError as error:
        if (source.directory / "tokenizer_config.json").is_file():
            raise
        # Some checkpoints go without one; others have their special tokens there alone.
        raise ModelError(f"{error}; it has no tokenizer_config.json, which may be why: copy it from where the weights "
                         "are from, if it is there") from error  # fmt: skip
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None or getattr(processor, "image_processor", None) is None:
        lacks = "tokenizer" if tokenizer is None else "image processor"
        raise ModelError(
            f"{source.directory}: its processor {type(processor).__name__} has no {lacks}: its processor_config.json "
            "(processor_class) is of another model, or of another transformers"
        )
    _check_scaling(source.directory, processor.image_processor)
    return processor


def _config(source: Source) -> Any:
    import transformers

    return transformers.AutoConfig.from_pretrained(source.directory, local_files_only=True, trust_remote_code=False)


def _check_scaling(directory: Path, reader: Any) -> None:
    """Raise `ModelError` for numbers that make all pixels equal, infinite or NaN: the weights would look broken."""
    for switch, names in (("do_rescale", ("rescale_factor",)), ("do_normalize", ("image_mean", "image_std"))):
        for name in names if getattr(reader, switch, True) else ():
            value = getattr(reader, name, None)
            listed = value if isinstance(value, (list, tuple)) else [value]
            numbers = [one for one in listed if isinstance(one, (int, float))]
            if not all(abs(one) < math.inf and (one or name == "image_mean") for one in numbers):
                raise ModelError(f"{directory}: its processor has the {name} {value}, which leaves nothing of a page: "
                                 f"copy {PROCESSOR} from where the weights are from")  # fmt: skip


def check_compilable(source: Source) -> None:
    """Raise `ModelError` for the class whose static cache has the length of each prompt: it takes no prompt of another
    length a second time, and a step compiled for two lengths overran it (torch 2.13, on a CPU)."""
    if (kind := source.config["model_type"]) == "unlimited_ocr":
        raise ModelError(f"infer=compiled: the static cache of {kind} has the length of each prompt, so no compiled "
                         "step serves all pages: use infer=reference")  # fmt: skip


def check_memory(source: Source, device: torch.device) -> None:
    """Raise `ModelError` where the weights' files are larger than the GPU's free memory."""
    if device.type != "cuda":
        return
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    needed = total_bytes(source.weights)
    if needed > free:
        raise ModelError(
            f"{source.directory}: the weights are {needed / 2**30:.1f} GiB, and {device} has {free / 2**30:.1f} GiB "
            "free: use a larger GPU, free this one, or set model.device=cpu"
        )


def load_weights(source: Source, device: torch.device, dtype: torch.dtype) -> Any:
    """transformers' model with all weights of *source*. Raises `ModelError` where a weight is missing or of another
    shape: transformers alone would use random ones there."""
    import torch
    import transformers

    from pytest_llmprof.models.from_transformers.costs import quantized_layers, scales

    options: dict[str, Any] = {}
    packed = source.quantized == "bitsandbytes"
    if source.quantized == "compressed-tensors":
        options["quantization_config"] = transformers.CompressedTensorsConfig(dequantize=True)
    elif packed:
        options["device_map"] = {"": device}
        # At each product of each token it tells that it rounds.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)

    def read() -> Any:
        model, found = transformers.AutoModelForImageTextToText.from_pretrained(
            source.directory, dtype=dtype, use_safetensors=True, local_files_only=True, trust_remote_code=False,
            ignore_mismatched_sizes=True, output_loading_info=True, **options,
        )  # fmt: skip
        if packed and any(not scales(layer) for layer in quantized_layers(model)):
            raise ValueError("the scales of its layers find no place")
        return model, found

    def shell() -> None:
        with torch.device("meta"):
            transformers.AutoModelForImageTextToText.from_config(_config(source))

    try:
        model, found = _read(source, "the weights", read)
    except ModelError as error:
        if source.quantized is None:  # before its weights the model itself is made
            _read(source, "the model that config.json describes", shell)
        if source.quantized is None or not isinstance(error.__cause__, (ValueError, RuntimeError)):
            raise
        reason = one_line(str(error.__cause__), 100)
        raise ModelError(f"{source.directory}: transformers cannot load this class's weights as {source.quantized} "
                         f"stores them: use the plain checkpoint ({reason})") from error  # fmt: skip
    check_tensors(source.directory, found)
    if not (hasattr(model.base_model, "get_image_features") and model._supports_mm_encoder_outputs()):
        raise ModelError(
            f"{source.directory}: {type(model).__name__} encodes images inside its forward pass, so vision and prefill "
            "cannot be told apart: use a document model of docs/models.md"
        )
    if packed and device.type == "cpu":
        keep_unpacked(quantized_layers(model))
    if not packed:
        model = model.to(device)
    if source.adapter is not None:
        model = _with_adapter(model, source)
    return model.eval().requires_grad_(False)


def keep_unpacked(layers: Sequence[Any]) -> None:
    """Let 4-bit *layers* whose sizes are no whole blocks run as they are stored. Where the CPU has AVX512-BF16,
    bitsandbytes packs each layer anew at its first product, and fails for those."""
    for layer in layers:
        state = getattr(layer.weight, "quant_state", None)
        if state is not None and (layer.in_features % state.blocksize or layer.out_features % _PACKED_ROWS):
            layer.support_avx512bf16_for_cpu = False


def _with_adapter(model: Any, source: Source) -> Any:
    """*model* with the LoRA weights merged into it. Raises `ModelError` where some do not belong to it: peft alone
    leaves those out."""
    from peft import PeftModel  # type: ignore[import-not-found, unused-ignore]

    def merge() -> Any:
        wrapped = PeftModel.from_pretrained(model, str(source.adapter))
        found = wrapped.load_adapter(str(source.adapter), "default")  # from_pretrained keeps what it found to itself
        if strange := [name for name in found.unexpected_keys if ".lora_" in name]:
            raise ValueError(f"{len(strange)} of its tensors have no place in the model, such as {strange[0]}")
        if missing := found.missing_keys:
            raise ValueError(f"it lacks {len(missing)} tensors of layers that it names, such as {missing[0]}")
        return wrapped.merge_and_unload()

    return _read(source, f"the adapter {source.adapter}", merge)


def what_is_left_out(source: Source, processor: Any, *, templated: bool) -> str | None:
    """A line for a LoRA directory whose own tokenizer or processor is another than *processor*, its base's; or whose
    chat template is, where prompts are *templated*."""
    import transformers

    adapter = source.adapter
    if adapter is None or not (own := processor_files(adapter)):
        return None
    whole = any(file.name.endswith("processor_config.json") for file in own)
    reader = transformers.AutoProcessor if whole else transformers.AutoTokenizer

    def differences() -> list[str]:
        found = reader.from_pretrained(adapter, local_files_only=True, trust_remote_code=False)
        ours, theirs = processor.tokenizer, getattr(found, "tokenizer", found)
        pairs = {"vocabulary": (ours.get_vocab(), theirs.get_vocab())}
        template = getattr(found, "chat_template", None) or theirs.chat_template
        if template and templated:
            pairs["chat template"] = (processor.chat_template or ours.chat_template, template)
        if whole:
            pairs["image processor"] = (processor.image_processor.to_dict(), found.image_processor.to_dict())
        return [f"another {name}" for name, (one, other) in pairs.items() if one != other]

    try:
        names = _read(source, f"the tokenizer or processor in {adapter}", differences, own)
    except ModelError as error:
        return f"The adapter's own tokenizer and processor are not used: {error}."
    if not names:
        return None
    return f"The adapter's directory has {' and '.join(names)} than its base; what is used is the base's."


def _read(source: Source, what: str, work: Callable[[], _Result], files: Iterable[Path] = ()) -> _Result:
    """The result of *work*, which reads *what*. What transformers raises becomes one line; where one of *files* is
    broken, that is said instead: Python's own words name no file."""
    try:
        with silenced(), warnings.catch_warnings():
            # It asks whether one's own quantization_config is meant; peft, of tensors that `_with_adapter` checks.
            warnings.filterwarnings("ignore", "You passed `quantization_config`|Found missing adapter keys")
            return told(f"{source.directory}: {what} cannot be loaded", work)
    except ModelError as error:
        if isinstance(error.__cause__, (ImportError, ValueError)):
            reason = str(error.__cause__)
            for place in filter(None, (source.directory, source.adapter)):
                reason = reason.replace(str(place), "")  # it may be called as a package is
            for package in _PACKAGES:
                if re.search(rf"\b{package.replace('_', '[-_]')}\b", reason, re.IGNORECASE):
                    need(package, f"{source.directory}: {what} cannot be loaded")
        for file in files:
            if file.suffix in (".json", ".jinja"):
                check_text(file)
        raise
