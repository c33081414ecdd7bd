"""Document models of transformers at their published sizes, with random weights: figures, engines, profile, nsys.

    python benchmarks/gpus/models.py OUT [--tiny] [--nsys] [--families NAME ...]

Builds a checkpoint of each family from the sizes that transformers' own configuration classes have as defaults (those
of the published models), runs it through `reference` and `compiled` in the stage torch_profiler, and prints one table.
With `--nsys` the first family runs under it, too. `--tiny` takes the tests' sizes, for a CPU. Answers mean
nothing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "models"), str(ROOT / "benchmarks")]

import compare_models  # noqa: E402 - both folders are no packages
import torch  # noqa: E402
import transformers as hf  # noqa: E402
import zoo  # noqa: E402

FAMILIES = ("lighton_ocr", "paddleocr_vl", "got_ocr2")
"""Their processors need Pillow alone."""
PROCESSORS = {
    "lighton_ocr": ("PixtralImageProcessor", {"size": {"longest_edge": 1540}, "patch_size": 28}),
    "paddleocr_vl": ("PaddleOCRVLImageProcessor", {}),
    "got_ocr2": ("GotOcr2ImageProcessor", {"size": zoo.square(1024)}),
}
KEYS = (
    *("dataset=documents", "dataset.limit=2", "infer.ignore_eos=true", "infer.max_new_tokens=128"),
    *("measure.rounds=2", "model.weights=checkpoint"),
)
TINY = ("dataset.limit=1", "infer.max_new_tokens=6", "infer.ignore_eos=true", "measure.rounds=1", "model.device=cpu")


def build(family: str, directory: Path) -> Path:
    """Save *family* at its published size, with random weights made on the device."""
    small, processor = getattr(zoo, family)()
    config = type(small)()
    for key, value in small.to_dict().items():  # the tokenizer is the tests'
        if key.endswith(("token_id", "token_index")) and isinstance(value, int):
            setattr(config, key, value)
    for key in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(config.text_config, key, zoo.TEXT[key])
    name, options = PROCESSORS[family]
    processor.image_processor = zoo.image_processor(name, **options)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    with device:
        model: Any = hf.AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, run and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tiny", action="store_true", help="the tests' sizes, on a CPU")
    parser.add_argument("--nsys", action="store_true", help="also run the first family under Nsight Systems")
    parser.add_argument("--families", nargs="+", default=FAMILIES, choices=FAMILIES)
    parser.add_argument("--engine", default="all", help="reference, compiled or all")
    given = parser.parse_args(arguments)
    keys = list(TINY if given.tiny else KEYS)
    with tempfile.TemporaryDirectory() as work:  # gigabytes, which do not belong into OUT
        models = []
        for family in given.families:
            begin = time.perf_counter()
            path = Path(work, family)
            if given.tiny:
                zoo.build(getattr(zoo, family), path)
            else:
                build(family, path)
            print(f"{family}: built in {time.perf_counter() - begin:.1f} s", flush=True)
            models.append(f"{family}={family}:{path}")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        arguments = [str(given.out), *models, "--engine", given.engine, "--stage", "torch_profiler", "--set", *keys]
        code = compare_models.main(arguments)
        if given.nsys:
            name, _, model = models[0].partition("=")
            keys = [*keys, "dataset.limit=1"]
            code |= compare_models.run_model(given.out, f"{name}-nsys", model, "reference", "nsys", keys) != 0
    return code


if __name__ == "__main__":
    sys.exit(main())
