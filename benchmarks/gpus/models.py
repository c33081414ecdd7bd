"""Document models of transformers at their published sizes, with random weights: figures, engines, profile, nsys.

    python benchmarks/gpus/models.py OUT [--tiny] [--nsys] [--tests] [--families NAME ...] [--engines NAME ...]
        [--seconds 200] [--set KEY=VALUE ...]

Builds a checkpoint of each family from the sizes that transformers' own configuration classes have as defaults (those
of the published models), and runs it through `reference` and then `compiled` in the stages static_analysis (figures,
MFU, MBU) and torch_profiler. With `--nsys` the first family runs under it, too. `--tiny` takes the tests' sizes, for a
CPU. Answers mean nothing. With `--tests` tests/models/test_any_model_gpu.py runs, too.

Each step is a process of its own with a time limit, and none ends the others: `reference` of all families comes first.
What has no time left within `--seconds` is left out, and said. OUT/models.md holds the table of the steps so far;
OUT/NAME.log and OUT/NAME are the log and the run directory of a step. NSYS_LIBS is as in .ci/gpu.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "models"), str(ROOT / "benchmarks")]

import compare_models  # noqa: E402 - both folders are no packages

from pytest_llmprof.records.metrics import Metrics  # noqa: E402
from pytest_llmprof.text.markdown import table  # noqa: E402
from pytest_llmprof.text.numbers import number  # noqa: E402

FAMILIES = ("lighton_ocr", "paddleocr_vl", "got_ocr2")
"""Their processors need Pillow alone."""
ENGINES = ("reference", "compiled")
STAGES = "static_analysis,torch_profiler"
KEYS = (
    *("dataset=documents", "dataset.limit=1", "infer.ignore_eos=true", "infer.max_new_tokens=64"),
    *("measure.rounds=3", "model.weights=checkpoint"),
)
TINY = ("dataset.limit=1", "infer.max_new_tokens=6", "infer.ignore_eos=true", "measure.rounds=1", "model.device=cpu")
LIMITS = {"build": 90, "reference": 75, "compiled": 120, "nsys": 100, "tests": 90}
"""Seconds that a step of each kind may take."""
LEAST_S = 15
"""With less time left no step begins."""
ASKED = (
    *("torch", "transformers", "torchvision", "num2words", "peft", "accelerate", "bitsandbytes"),
    *("compressed-tensors", "nvtx"),
)
FIGURES = {
    "Pages/s": "pages_per_s", "TTFT ms": "ttft_ms", "TPOT ms": "tpot_ms", "Vision ms": "vision_ms",
    "Prefill ms": "prefill_ms", "Peak GiB": "peak_memory_gib", "MFU vision": "vision_mfu", "MFU prefill": "prefill_mfu",
    "MBU decode": "decode_mbu", "GPU busy": "gpu_busy_share",
}  # fmt: skip


@dataclass
class Steps:
    """Runs steps within a time, and keeps the table of what they gave."""

    out: Path
    seconds: float
    begin: float = field(default_factory=time.monotonic)
    rows: list[tuple[str, ...]] = field(default_factory=list)
    failed: bool = False

    def limit(self, kind: str) -> float:
        """Seconds that a step of this *kind* has; less than `LEAST_S` where it should not begin."""
        return min(LIMITS[kind], self.begin + self.seconds - time.monotonic())

    def ended(self, name: str, code: int, begin: float) -> None:
        """Say how a step ended, and from its log why it failed."""
        how = "time limit" if code == compare_models.TIMED_OUT else f"exit code {code}"
        print(f"== {name}: {how}, {time.monotonic() - begin:.1f} s", flush=True)
        if code:
            self.failed = True
            for line in compare_models.why(self.out / f"{name}.log"):
                print(f"   {line[:250]}", flush=True)

    def may_begin(self, name: str, kind: str) -> bool:
        """Whether there is time for a step of this *kind*; says so where there is none."""
        if self.limit(kind) >= LEAST_S:
            return True
        self.failed = True
        print(f"== {name}: left out, no time (--seconds {self.seconds:g})", flush=True)
        return False

    def run(self, name: str, kind: str, family: str, path: Path, engine: str, stages: str, keys: Sequence[str]) -> None:
        """Run *family* from *path*, and write the table anew with its figures."""
        if not self.may_begin(name, kind):
            return
        begin = time.monotonic()
        code = compare_models.run_model(self.out, name, f"{family}:{path}", engine, stages, keys, self.limit(kind))
        self.ended(name, code, begin)
        self.rows.append((family, name.removeprefix(f"{family}-"), *figures(self.out / name)))
        text = table(("Model", "Step", *FIGURES), self.rows, left=2)
        (self.out / "models.md").write_text(text, encoding="utf-8")
        print(text.splitlines()[-1], flush=True)

    def tests(self) -> None:
        """Run the tests of these models that need a GPU."""
        if not self.may_begin("tests", "tests"):
            return
        begin, log = time.monotonic(), self.out / "tests.log"
        options = ["-m", "gpu", "-q", "-p", "no:cacheprovider", "--tb=short", "--show-capture=no"]
        command = [sys.executable, "-m", "pytest", str(ROOT / "tests/models/test_any_model_gpu.py"), *options]
        self.ended("tests", compare_models.run_logged(command, log, self.limit("tests")), begin)
        print(*log.read_text(encoding="utf-8").splitlines()[-1:], flush=True)


def figures(run: Path) -> list[str]:
    """The table's cells, from what the stages of a run wrote."""
    found: dict[str, float | None] = {}
    for file in sorted(run.glob("*/*/*/metrics.json"), key=lambda file: "static_analysis" in file.parts):
        try:
            own = msgspec.json.decode(file.read_bytes(), type=Metrics).figures
        except msgspec.MsgspecError as error:  # of a run that was ended
            print(f"{file}: {error}", flush=True)
            continue
        found |= {key: value for key, value in own.items() if value is not None or key not in found}
    return [number(found.get(key)) for key in FIGURES.values()]


def versions() -> str:
    """What is installed of what the models may ask for."""
    found = {}
    for name in ASKED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "here, without a version" if find_spec(name.replace("-", "_")) else "not installed"
    return ", ".join(f"{name} {what}" for name, what in found.items())


def build(families: Sequence[str], directory: Path, tiny: bool) -> int:
    """Save *families* in *directory*; one that cannot be built leaves the others. The exit code."""
    import torch
    import zoo

    code = 0
    for family in families:
        begin = time.monotonic()
        try:
            if tiny:
                zoo.build(getattr(zoo, family), directory / family)
            else:
                published(family, directory / family)
        except Exception:  # noqa: BLE001 - whatever transformers raises, the other families are built
            traceback.print_exc()
            print(f"ERROR {family} cannot be built", flush=True)
            code = 1
        else:
            (directory / f"{family}.whole").touch()
            print(f"{family}: built in {time.monotonic() - begin:.1f} s", flush=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return code


def published(family: str, directory: Path) -> None:
    """Save *family* at its published size, with random weights made on the device."""
    import torch
    import transformers as hf
    import zoo

    processors = {
        "lighton_ocr": ("PixtralImageProcessor", {"size": {"longest_edge": 1540}, "patch_size": 28}),
        "paddleocr_vl": ("PaddleOCRVLImageProcessor", {}),
        "got_ocr2": ("GotOcr2ImageProcessor", {"size": zoo.square(1024)}),
    }
    small, processor = getattr(zoo, family)()
    config = type(small)()
    for key, value in small.to_dict().items():  # the tokenizer is the tests'
        if key.endswith(("token_id", "token_index")) and isinstance(value, int):
            setattr(config, key, value)
    for key in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(config.text_config, key, zoo.TEXT[key])
    name, options = processors[family]
    processor.image_processor = zoo.image_processor(name, **options)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model: Any = hf.AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, run and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tiny", action="store_true", help="the tests' sizes, on a CPU")
    parser.add_argument("--nsys", action="store_true", help="also run the first family under Nsight Systems")
    parser.add_argument("--tests", action="store_true", help="also run tests/models/test_any_model_gpu.py")
    parser.add_argument("--families", nargs="+", default=FAMILIES, choices=FAMILIES)
    parser.add_argument("--engines", nargs="+", default=ENGINES, choices=ENGINES)
    parser.add_argument("--seconds", type=float, default=200, help="time for all steps")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="overrides for all")
    parser.add_argument("--build", type=Path, help=argparse.SUPPRESS)  # the first step
    given = parser.parse_args(arguments)
    if given.build:
        return build(given.families, given.build, given.tiny)
    keys = [*(TINY if given.tiny else KEYS), *given.set]
    given.out.mkdir(parents=True, exist_ok=True)
    steps = Steps(given.out, given.seconds)
    os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is asked of a hub that cannot be reached
    print(versions(), flush=True)
    with tempfile.TemporaryDirectory() as work:  # gigabytes, which do not belong into OUT
        begin = time.monotonic()
        command = [sys.executable, __file__, str(given.out), "--build", work, "--families", *given.families]
        command += ["--tiny"] if given.tiny else []
        code = compare_models.run_logged(command, given.out / "build.log", steps.limit("build"))
        steps.ended("build", code, begin)
        whole = [family for family in given.families if Path(work, f"{family}.whole").exists()]
        order = [(family, engine) for engine in given.engines for family in whole]
        for place, (family, engine) in enumerate(order):
            steps.run(f"{family}-{engine}", engine, family, Path(work, family), engine, STAGES, keys)
            if place != min(len(whole), len(order) - 1):
                continue  # else after the first that is compiled
            if given.nsys:
                libraries = os.environ.get("NSYS_LIBS")
                more = [f"pipeline.nsys.env={{LD_LIBRARY_PATH: {libraries}}}"] if libraries else []
                more += [] if given.tiny else ["infer.max_new_tokens=17"]
                first = whole[0]
                steps.run(f"{first}-nsys", "nsys", first, Path(work, first), "reference", "nsys", [*keys, *more])
            if given.tests:
                steps.tests()
    return steps.failed


if __name__ == "__main__":
    sys.exit(main())
