"""The same pages through several models, in one table.

    python benchmarks/compare_models.py OUT NAME=PRESET[:PATH or hub id] ... [--engine reference] [--stage STAGE]
        [--set KEY=VALUE ...]

Each model runs in a pytest of its own, whose run directory is OUT/NAME. The table goes to standard output and to
OUT/models.md: pages that were measured, pages a second and time to first token (medians over pages), tokens a page,
character error rate (null where weights are random or pages have no truth), and peak memory (null on a CPU).
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from pytest_llmprof.config.presets import quoted
from pytest_llmprof.records.metrics import Metrics
from pytest_llmprof.text.escape import inline
from pytest_llmprof.text.markdown import table
from pytest_llmprof.text.numbers import number

SWEEP = Path(__file__).parent / "sweeps" / "test_models.py"
TIMED_OUT = 124
"""The exit code of a run that its time limit ended."""
INTERRUPTED = 130
"""The exit code after Ctrl-C."""
MODEL = re.compile(r"[^:]+(?::.+)?")
"""PRESET[:PATH]; an empty PATH, as of a variable that is not set, would be the preset's own."""
NAME = re.compile(r"\w[\w .+-]{0,99}")
"""What a run may be called."""
GRACE_S = 10
"""Seconds that such a run has to write what it has."""
HEAD = ("Model", "Engine", "Pages", "Pages/s", "TTFT ms", "TPOT ms", "Tokens/page", "CER", "Peak GiB")


def run_model(
    out: Path, name: str, model: str, engine: str, stage: str, keys: Sequence[str], limit_s: float | None = None
) -> int:
    """Run one model; its log is OUT/NAME.log. Gives pytest's exit code, `TIMED_OUT` after *limit_s*."""
    preset, _, path = model.partition(":")
    if os.path.isdir(here := os.path.expanduser(path)):
        path = os.path.abspath(here)
    given = [f"model={preset}", *([f"model.path={quoted(path)}"] if path else []), *keys]
    command = [sys.executable, "-m", "pytest", str(SWEEP), "-q", "-rs", "-p", "no:cacheprovider", "--tb=short"]
    command += [f"--llmprof-stage={stage}", f"--llmprof-run-dir={out / name}"]
    if engine != "all":
        command += ["-k", engine]
    command += [word for key in given for word in ("--llmprof-override", key)]
    return run_logged(command, out / f"{name}.log", limit_s)


def run_logged(command: Sequence[str], log: Path, limit_s: float | None = None) -> int:
    """Run *command* with its output in *log*. Gives its exit code, `TIMED_OUT` where *limit_s* ended it."""
    with log.open("w", encoding="utf-8") as stream:
        # A session of its own, so that what it started ends with it.
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            return process.wait(limit_s)
        except subprocess.TimeoutExpired:
            _end(process)
            return TIMED_OUT
        except BaseException:
            _end(process)
            raise


def _end(process: subprocess.Popen[bytes]) -> None:
    """End *process*, as Ctrl-C does: pytest then ends its run directory, and the tool that a stage runs it under."""
    try:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(GRACE_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def why(log: Path) -> list[str]:
    """The lines of a log that say what failed, else its last ones."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    head = next((number for number, line in enumerate(lines) if "= FAILURES =" in line or "= ERRORS =" in line), None)
    if head is not None:  # pytest's, up to its next heading
        tail = next((number for number, line in enumerate(lines) if number > head and line.startswith("====")), None)
        lines = lines[head + 1 : tail]
    return [line for line in lines if line.startswith(("E  ", "ERROR", "SKIPPED"))][-6:] or lines[-6:]


def rows(out: Path, name: str, stage: str) -> Iterator[tuple[str, ...]]:
    """The table's rows of one model, from what its run wrote."""
    for file in sorted((out / name).glob(f"*/*/{stage}/metrics.json")):
        metrics = msgspec.json.decode(file.read_bytes(), type=Metrics)
        figures = {**metrics.figures, **(metrics.quality or {})}
        tokens = sum(sample.tokens for sample in metrics.samples) / max(len(metrics.samples), 1)
        values = [figures.get(key) for key in ("pages_per_s", "ttft_ms", "tpot_ms")]
        shown = (number(value) for value in (*values, tokens, figures.get("cer"), figures.get("peak_memory_gib")))
        failed = len({error.page for error in metrics.errors} - {None})
        pages = f"{metrics.pages}, {failed} failed" if failed else str(metrics.pages)
        yield (inline(name), metrics.fingerprint.engine or "", pages, *shown)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("models", nargs="+", metavar="NAME=PRESET[:PATH]")
    parser.add_argument("--engine", default="reference", choices=("reference", "compiled", "all"))
    parser.add_argument("--stage", default="direct_inference")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="overrides for all of them"
    )
    given = parser.parse_args(arguments)
    models = {}
    for text in given.models:
        name, equals, model = text.partition("=")
        if not equals or not MODEL.fullmatch(model) or not NAME.fullmatch(name) or name.endswith((".log", ".md")):
            parser.error(f"{text!r} is not NAME=PRESET[:PATH], such as glm=glm_ocr:/models/GLM-OCR; NAME becomes the "
                         "directory OUT/NAME: letters, digits, and space . _ + - after the first one, no .log or .md")
        if name in models:
            parser.error(f"two models are named {name}: their runs would be one directory")
        if (given.out / name).exists():
            parser.error(f"{given.out / name} is there already, whose figures are not of this call: name another OUT")
        models[name] = model
    if not re.fullmatch(r"\w+", given.stage):
        parser.error(f"--stage {given.stage}: name one stage, whose figures the table shows")
    for key in given.set:
        if key.partition("=")[0].strip() in ("model", "model.path"):
            parser.error(f"--set {key}: it would be the model of all rows; name each as NAME=PRESET[:PATH]")
    place = given.out / "models.md"
    if place.exists():
        parser.error(f"{place} is there already, the table of another call: name another OUT")
    try:
        given.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"the directory {given.out} cannot be made: {error.strerror}")
    code = 0
    cells: list[tuple[str, ...]] = []
    for name, model in models.items():
        log = given.out / f"{name}.log"
        try:
            failed = run_model(given.out, name, model, given.engine, given.stage, given.set)
        except KeyboardInterrupt:
            print(f"{name} failed: {log}\nstopped at {name}, so the table is not whole", file=sys.stderr)
            cells += rows(given.out, name, given.stage)
            code = INTERRUPTED
            break
        except OSError as error:
            print(f"{name} failed: {log} cannot be written: {error.strerror}", file=sys.stderr)
            code = 1
            continue
        found = list(rows(given.out, name, given.stage))
        cells += found
        if failed or len(found) < (2 if given.engine == "all" else 1):  # an engine that cannot run here is skipped
            print(f"{name} {'failed' if failed else 'lacks figures'}: {log}", file=sys.stderr)
            print(*(f"   {line[:400]}" for line in why(log)), sep="\n", file=sys.stderr, flush=True)
            code = 1
    if cells:
        print(text := table(HEAD, cells, left=2))
        try:
            place.write_text(text, encoding="utf-8")
        except OSError as error:
            print(f"{place} cannot be written: {error.strerror}", file=sys.stderr)
            code = code or 1
    return code


if __name__ == "__main__":
    for one in (signal.SIGTERM, signal.SIGHUP):  # else the run, which has a session of its own, would go on
        signal.signal(one, signal.default_int_handler)
    sys.exit(main())
