"""The loaded model: implements the adapter protocol with the other modules of this package."""

from __future__ import annotations

import functools
import gc
import re
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from pytest_llmprof.errors import ModelError, error_line
from pytest_llmprof.models.base import BoxFormat, Capabilities, ModelInfo, ParsedOutput, Token
from pytest_llmprof.models.from_transformers import MODE, NAME, prompts
from pytest_llmprof.models.from_transformers.checkpoint import PROCESSOR, told
from pytest_llmprof.models.from_transformers.loop import Plan, Step, decode
from pytest_llmprof.models.from_transformers.plain import is_tag, plain_text
from pytest_llmprof.text.escape import one_line, quoted

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import StaticCache

    from pytest_llmprof.config.schema import InferSettings, ModelSettings
    from pytest_llmprof.models.base import Costs, Phases

_PHASES = ("preprocess", "vision", "prefill", "decode")
_BUCKET = 256
"""A static cache's length is a multiple of it, so that pages of about one length share a compiled step."""
_ANSWER_CHANGING = (
    *("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty"),
    *("no_repeat_ngram_size", "encoder_repetition_penalty", "bad_words_ids", "suppress_tokens", "sequence_bias"),
    *("begin_suppress_tokens", "min_length", "min_new_tokens", "exponential_decay_length_penalty"),
    *("epsilon_cutoff", "eta_cutoff", "top_h", "encoder_no_repeat_ngram_size"),
)
"""Fields of a generation_config that change an answer's tokens, and that `infer.generation=checkpoint` follows."""
_SAMPLED = (
    *("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h"),
)
"""Those that have no effect without sampling."""
_NOT_FOLLOWED = (
    *("num_beams", "num_return_sequences", "penalty_alpha", "guidance_scale", "stop_strings", "forced_bos_token_id"),
    *("forced_eos_token_id", "watermarking_config", "dola_layers", "constraints", "force_words_ids", "token_healing"),
)
"""Fields that change them, too, but that the loop here does not know."""
_SIZES = (
    ("patch_size", "patch_size", "a multiple of it"), ("merge_size", "spatial_merge_size", "equal"),
    ("temporal_patch_size", "temporal_patch_size", "equal"),
)  # fmt: skip
"""Sizes of the processor, those of the model's vision_config, and what the former have to be."""
_OF_SHAPES = re.compile(r"\b(?:sizes?|shapes?|channels|dimensions?)\b")
"""In what torch says of tensors that do not go together."""


class TransformersModel:
    """A document model of transformers, ready to read pages. Implements `pytest_llmprof.models.base.LoadedModel`."""

    def __init__(
        self,
        network: Any,
        processor: Any,
        settings: ModelSettings,
        *,
        engine: str,
        digest: str,
        boxes: BoxFormat,
        where: str,
        quantized: str | None = None,
        note: str | None = None,
    ) -> None:
        """Wrap transformers' model *network*, on its device, and its *processor*; *where* is the checkpoint,
        *quantized* by this method. *note* is for the report.

        Raises `ModelError` where they and `model.family` do not fit together.
        """
        self.network: Any = network
        """None once closed."""
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.tokenizer.padding_side = "left"  # on the right, padding would stand between a prompt and its answer
        self.family = settings.family
        self._seed = settings.seed
        self._boxes = boxes
        self._where = where
        self._device, self._dtype = network.device, network.dtype
        self._vocabulary: int = network.get_input_embeddings().num_embeddings
        text, vision = network.config.get_text_config(decoder=True), getattr(network.config, "vision_config", None)
        self._positions: int = getattr(text, "max_position_embeddings", None) or 1 << 30
        self._image_id = self._check_tokens()
        self._check_sizes()
        self._asked = network.generation_config
        self.eos = self._end_tokens()
        """Tokens that end an answer."""
        self._add_padding()
        self._frame, self._ends = self._marks()
        self._compiled = engine == "compiled"
        self._steps: Any = None
        self._places = 0
        """Of the longest static cache so far."""
        self._caches: dict[tuple[int, int], StaticCache] = {}
        self._resized: dict[tuple[int, int], tuple[int, int] | None] = {}
        self.capabilities = Capabilities(phases=_PHASES)
        asked = _asked_for(self._asked)
        self.info = ModelInfo(
            name=NAME,
            weights="checkpoint",
            digest=digest,
            parameters=network.num_parameters(),
            device=str(self._device),
            dtype=str(self._dtype).removeprefix("torch."),
            mode=MODE,
            engine=engine,
            note=" ".join(text for text in (note, _note(asked)) if text) or None,
            details={
                "class": type(network).__name__,
                "model_type": network.config.model_type,
                "attention": text._attn_implementation,
                "vision_attention": getattr(vision, "_attn_implementation", None),
                "quantized": quantized,
                "generation_config": asked,
                "layers": getattr(text, "num_hidden_layers", None),
                "hidden_size": getattr(text, "hidden_size", None),
                "vocabulary": self._vocabulary,
                "positions": self._positions,
            },
        )

    @torch.inference_mode()
    def generate(self, images: Sequence[Image], infer: InferSettings, phases: Phases) -> Iterator[Token]:
        """Yield the tokens of a batch of images as they come; see `LoadedModel.generate`."""
        if self.network is None:
            raise ModelError("the model was closed")
        if not images:
            return
        with phases.phase("preprocess"):
            inputs = self.inputs(images, infer)
            limit = self._limit(inputs, infer)
            inputs = inputs.to(self._device, self._dtype)
        eos = () if infer.ignore_eos else self.eos
        live = [True] * len(images)
        number = 0
        if self._steps is not None:
            self._steps.close()  # models keep the positions of one answer, so two never run in turns
        steps: Generator[Step, None, None] | None = None
        try:
            self._steps = steps = self._run(inputs, infer, limit, phases)
            del inputs
            for number, step in enumerate(steps, 1):
                last = number == limit
                ends = ["eos" if token in eos else "length" if last else None for token in step.ids]
                tokens = [Token(row, step.ids[row], None, step.time_ns, ends[row]) for row, on in enumerate(live) if on]
                live = [on and end is None for on, end in zip(live, ends, strict=True)]
                if not any(live):
                    steps.close()  # ends the phase before the last tokens are handed on
                    step.check()
                yield from tokens
        except (ValueError, TypeError, LookupError) as error:
            # So it refuses a value of the generation_config, or a prompt with image tokens of its own.
            if not isinstance(error, ValueError) and infer.generation == "greedy":
                raise
            raise ModelError(f"{self._where}: transformers cannot generate: {one_line(str(error))}") from error
        except RuntimeError as error:
            if number or type(error) is not RuntimeError or not _OF_SHAPES.search(str(error)):
                raise
            raise ModelError(self._unfit(str(error))) from error
        finally:
            if steps is not None:
                steps.close()

    def _unfit(self, reason: str) -> str:
        """The line for shapes that do not go together before the first token."""
        if method := self.info.details["quantized"]:
            what = f"transformers cannot run this class's layers as {method} stores them: use the plain checkpoint"
        else:
            reader = self.processor.image_processor
            sizes = [_shown(name, getattr(reader, name, None)) for name in ("size", "patch_size", "merge_size")]
            what = (f"the model does not take what its processor gives ({', '.join(filter(None, sizes))}): copy "
                    f"{PROCESSOR} from where the weights are from")  # fmt: skip
        return f"{self._where}: {what} ({one_line(reason, 200)})"

    def inputs(self, images: Sequence[Image], infer: InferSettings) -> Any:
        """A batch as the processor's tensors, on the CPU. Raises `ModelError` for what the processor does not take."""
        given = [[image] for image in images] if self.family.images == "nested" else list(images)
        text = [self.prompt(infer)] * len(images)
        found: Any = told(f"{self._where}: its processor does not take the images with this prompt", lambda:
                          self.processor(images=given, text=text, return_tensors="pt", padding=True))  # fmt: skip
        ids = found["input_ids"]
        if int(ids.max()) >= self._vocabulary or not bool((ids == self._image_id).any(1).all()):
            raise ModelError(
                f"{self._where}: the prompt's tokens are not the model's (no image token {self._image_id}, or ids "
                f"outside its vocabulary of {self._vocabulary}): another tokenizer than the weights', "
                "or another model.family"
            )
        return found

    def prompt(self, infer: InferSettings) -> str:
        """The prompt's full text."""
        _, text = prompts.asked(self.family, infer.prompt)
        return prompts.whole_prompt(self.processor, self.family, text, self._where)

    def prompt_kind(self, infer: InferSettings) -> str:
        """What `infer.prompt` asks for: "markdown", "free" or "other"."""
        return prompts.asked(self.family, infer.prompt)[0]

    def text(self, ids: Sequence[int]) -> str:
        """Decode token ids, special tokens included."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def parse(self, text: str, size: tuple[int, int]) -> ParsedOutput:
        """Read an answer about an image of *size* (width, height)."""
        if not text.endswith(self._frame):
            text = text.removesuffix(next(filter(text.endswith, self._ends), ""))
        text = _without(text, self._frame)  # else an end token would be the text of the last box
        resized = self._resized_size(size) if self._boxes.resized else None
        try:
            found: Any = self._boxes.read(text, size, resized)
        except Exception as error:  # a stranger's code
            raise ModelError(f"the format of boxes {self._boxes.name!r} failed: {error_line(error)}") from error
        plain = getattr(found, "plain", None)
        if not isinstance(found, ParsedOutput) or not isinstance(plain, str):
            raise ModelError(f"the format of boxes {self._boxes.name!r} returned {quoted(found)}, which is no "
                             "ParsedOutput with a str as its plain")  # fmt: skip
        special = [one for one in self.tokenizer.all_special_tokens if not is_tag(one, self.family.answer)]
        plain = _without(plain, special)
        return ParsedOutput(plain_text(plain, self.family.answer), found.boxes, found.bad_boxes, found.loop_text)

    def shape_key(self, image: Image, infer: InferSettings) -> object:
        """The shapes of all tensors, and how images are cut: together they set every shape."""
        found = self.inputs([image], infer)
        return tuple(
            (name, tuple(value.shape), str(value.tolist()) if "grid" in name or "size" in name else "")
            if hasattr(value, "shape") else (name, (), str(value))
            for name, value in sorted(found.items())
        )  # fmt: skip

    def costs(self, images: Sequence[Image], infer: InferSettings, tokens: Sequence[int]) -> Costs:
        """FLOPs and bytes of a batch; see `Costed.costs`. Runs a part of the batch once more, eagerly."""
        from pytest_llmprof.models.from_transformers.costs import CountingPhases, batch_costs

        prompt = self.inputs(images, infer)["input_ids"].shape[1]

        def run(phases: CountingPhases, most: int) -> None:
            compiled, self._compiled = self._compiled, False
            try:
                for _ in self.generate(images, replace(infer, max_new_tokens=most, ignore_eos=True), phases):
                    pass
            finally:
                self._compiled = compiled

        return batch_costs(self.network, tokens, prompt, run)

    def close(self) -> None:
        """Free the weights; the model cannot run afterwards."""
        if self._steps is not None:
            self._steps.close()
        self.network = self._steps = None
        self._caches.clear()
        gc.collect()  # the modules refer to one another in circles
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _run(self, inputs: Any, infer: InferSettings, limit: int, phases: Phases) -> Generator[Step, None, None]:
        """transformers' `generate` up to its loop, and the loop's iterator."""
        network = self.network
        length = inputs["input_ids"].shape[1]
        options: dict[str, Any] = {"max_new_tokens": limit}
        if self._compiled:
            self._places = max(self._places, -(-(length + limit) // _BUCKET) * _BUCKET)  # generate() never shrinks it
            options = {"max_new_tokens": self._places - length}
            options |= {"cache_implementation": "static", "disable_compile": True}
        network.generation_config = config = self._generation(infer)
        random = torch.Generator(self._device).manual_seed(self._seed) if config.do_sample else None
        ngram, config.no_repeat_ngram_size = infer.no_repeat_ngram_size or config.no_repeat_ngram_size or 0, None
        plan = Plan(phases, self._forward(), ngram, random, partial(self._kept, inputs["input_ids"].shape[0]))
        with _vision_phase(network.base_model, phases):
            steps: Generator[Step, None, None] = network.generate(
                **inputs, **options, custom_generate=decode, plan=plan
            )
        return steps

    def _kept(self, rows: int, fresh: StaticCache) -> StaticCache:
        """*fresh*, or an earlier answer's cache of its shape, emptied: CUDA graphs hold its tensors' addresses."""
        shape = (rows, self._places)
        if shape in self._caches:
            self._caches[shape].reset()
        else:  # shorter ones are not used again
            kept = {one: cache for one, cache in self._caches.items() if one[1] == self._places}
            self._caches = {**kept, shape: fresh}
        return self._caches[shape]

    def _forward(self) -> Any:
        """What runs a decode step."""
        return self.network.get_compiled_call(None) if self._compiled else self.network

    def _generation(self, infer: InferSettings) -> Any:
        """The generation_config of `infer.generation`. Raises `ModelError` for what is not followed."""
        from transformers import GenerationConfig

        asked = self._asked
        followed: dict[str, Any] = {"do_sample": False}
        if infer.generation == "checkpoint":
            found = _asked_for(asked)
            if other := [f"{name}={found[name]}" for name in _NOT_FOLLOWED if name in found]:
                raise ModelError(f"{self._where}: its generation_config asks for {', '.join(other)}, which is not "
                                 "followed: use infer.generation=greedy")  # fmt: skip
            if type(ngram := found.get("no_repeat_ngram_size", 0)) is not int:
                raise ModelError(f"{self._where}: its generation_config asks for no_repeat_ngram_size={quoted(ngram)}, "
                                 "which is no whole number")  # fmt: skip
            # The least length of an answer counts up to its end tokens. The end itself is for `generate` above to see.
            followed |= found | {"eos_token_id": sorted(self.eos)}
        return GenerationConfig(
            use_cache=True, pad_token_id=self.tokenizer.pad_token_id, bos_token_id=asked.bos_token_id,
            max_length=None, **followed,
        )

    def _limit(self, inputs: Any, infer: InferSettings) -> int:
        """Most tokens that an answer may have. Raises `ModelError` where the prompt does not fit."""
        length = inputs["input_ids"].shape[1]
        if length >= self._positions:
            raise ModelError(f"the prompt has {length} tokens; the model has {self._positions} positions")
        return int(min(infer.max_new_tokens, self._positions - length))

    def _check_tokens(self) -> int:
        """The id of the image token. Raises `ModelError` where the tokenizer and the model do not fit together."""
        config = self.network.config
        image = next((value for key in ("image_token_id", "image_token_index")
                      if isinstance(value := getattr(config, key, None), int)), None)  # fmt: skip
        if image is None:
            what = "config.json names no image token"
        elif len(self.tokenizer) > self._vocabulary:
            what = f"the tokenizer has {len(self.tokenizer)} tokens, the model {self._vocabulary}"
        elif image not in self.tokenizer.get_vocab().values():
            what = f"the tokenizer has no token {image}, the model's image token"
        else:
            return image
        raise ModelError(f"{self._where}: {what}: the tokenizer and the weights do not belong together")

    def _check_sizes(self) -> None:
        """Raise `ModelError` where the processor cuts images into other patches than the model takes: some classes
        would answer all the same."""
        vision = getattr(self.network.config, "vision_config", None)
        readers = (self.processor.image_processor, self.processor)
        for own, wanted, how in _SIZES:
            given = _first_whole(own, readers)
            needed = _first_whole(wanted, (vision, getattr(vision, "sam_config", None)))
            if not given or not needed or given == needed or (own == wanted == "patch_size" and given % needed == 0):
                continue
            raise ModelError(
                f"{self._where}: its processor has the {own} {given}, config.json's vision_config the {wanted} "
                f"{needed}; the former has to be {how}: copy {PROCESSOR} from where the weights are from"
            )

    def _end_tokens(self) -> frozenset[int]:
        """Ids that end an answer: the checkpoint's and the family's. Raises `ModelError` for an unknown one."""
        own = self._asked.eos_token_id
        own = [token for token in (own if isinstance(own, list) else [own]) if token is not None]
        found = {token for token in own if 0 <= token < self._vocabulary}
        if own and not found:
            raise ModelError(f"{self._where}: generation_config.json, or else config.json, has the eos_token_id "
                             f"{own[0]}, which is outside the model's vocabulary of {self._vocabulary}: no answer "
                             "would end there")  # fmt: skip
        if self.tokenizer.eos_token_id is not None:
            found.add(self.tokenizer.eos_token_id)
        found.update(self.tokenizer.convert_tokens_to_ids(list(self.family.stop)))
        if not found:
            raise ModelError(f"{self._where} names no end token; set model.family.stop")
        return frozenset(found)

    def _add_padding(self) -> None:
        """Give a tokenizer without a padding token the checkpoint's, else an end token, as transformers' `generate`
        does: without one it takes no batch, not even of one page."""
        if self.tokenizer.pad_token is None:
            own = self._asked.pad_token_id
            known = own is not None and 0 <= own < len(self.tokenizer)
            self.tokenizer.pad_token = self.tokenizer.convert_ids_to_tokens(own if known else min(self.eos))

    def _marks(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Tokens around an answer (begin, end, padding), and texts that end one but are also text elsewhere, such as
        "O"."""
        words = self.tokenizer
        added = getattr(words, "added_tokens_decoder", {})
        frame = {words.bos_token, words.eos_token, words.pad_token}
        frame |= {str(added[end]) for end in self.eos if end in added}
        ends = {words.decode([end]) for end in self.eos if end not in added}
        return tuple(frame - {None, ""}), tuple(sorted(ends - frame, key=len, reverse=True))

    def _resized_size(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """The size that the processor gives an image of *size*, from its grid of patches; None where it has none."""
        if size not in self._resized:
            from PIL import Image

            reader = self.processor.image_processor
            grid = reader(Image.new("RGB", size), return_tensors="pt").get("image_grid_thw")
            _, rows, columns = grid[0].tolist() if grid is not None else (0, 0, 0)
            self._resized[size] = (columns * reader.patch_size, rows * reader.patch_size) if rows else None
        return self._resized[size]


@contextmanager
def _vision_phase(base: Any, phases: Phases) -> Iterator[None]:
    """Make the model's image encoder, projector included, the phase `vision`; `generate` calls it before its loop."""
    inner = base.get_image_features

    @functools.wraps(inner)  # generate() reads its signature
    def features(*args: Any, **kwargs: Any) -> Any:
        with phases.phase("vision"):
            return inner(*args, **kwargs)

    base.get_image_features = features
    try:
        yield
    finally:
        del base.get_image_features


def _without(text: str, tokens: Iterable[str]) -> str:
    for token in sorted(tokens, key=len, reverse=True):
        text = text.replace(token, "")
    return text


def _first_whole(name: str, holders: Sequence[Any]) -> int | None:
    """The first whole number of this name that one of *holders* has."""
    return next((value for one in holders if type(value := getattr(one, name, None)) is int), None)


def _shown(name: str, value: Any) -> str:
    """A processor's size as text; nothing where it has none."""
    if isinstance(value, int):
        return f"{name}={value}"
    parts = value if isinstance(value, Mapping) else getattr(value, "__dict__", {})
    listed = ", ".join(f"{key}={part}" for key, part in parts.items() if part is not None)
    return f"{name}: {listed}" if listed else ""


def _asked_for(config: Any) -> dict[str, Any]:
    """What of a generation_config changes an answer's tokens."""
    changed = config.to_diff_dict()
    names = (*_ANSWER_CHANGING, *_NOT_FOLLOWED)
    found = {name: changed[name] for name in names if changed.get(name) is not None}
    if not found.get("do_sample"):  # else these have no effect
        for name in _SAMPLED:
            found.pop(name, None)
    for name in ("num_beams", "num_return_sequences", "guidance_scale", "repetition_penalty"):  # 1 changes nothing
        if found.get(name) == 1:
            del found[name]
    for name in _NOT_FOLLOWED:  # nor do these where they are off
        if not found.get(name, True):
            del found[name]
    return found


def _note(asked: dict[str, Any]) -> str | None:
    if not asked:
        return None
    listed = ", ".join(f"{name}={value}" for name, value in asked.items())
    return (f"The checkpoint's generation_config asks for {listed}: infer.generation=checkpoint follows that, greedy "
            "leaves it out.")  # fmt: skip
