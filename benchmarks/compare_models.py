"""The same pages through several models, in one table.

    python benchmarks/compare_models.py OUT NAME=PRESET[:PATH or hub id] ... [--engine reference] [--stage STAGE]
        [--set KEY=VALUE ...]

Each model runs in a pytest of its own, whose run directory is OUT/NAME. The table goes to standard output and to
OUT/models.md: pages a second and time to first token (medians over pages), tokens a page, character error rate (null
where weights are random or pages have no truth), and peak memory (null on a CPU).
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
NAME = re.compile(r"\w[\w .+-]{0,99}")
"""What a run may be called."""
GRACE_S = 10
"""Seconds that such a run has to write what it has."""
HEAD = ("Model", "Engine", "Pages/s", "TTFT ms", "TPOT ms", "Tokens/page", "CER", "Peak GiB")


def run_model(
    out: Path, name: str, model: str, engine: str, stage: str, keys: Sequence[str], limit_s: float | None = None
) -> int:
    """Run one model; its log is OUT/NAME.log. Gives pytest's exit code, `TIMED_OUT` after *limit_s*."""
    preset, _, path = model.partition(":")
    if os.path.isdir(here := os.path.expanduser(path)):
        path = os.path.abspath(here)
    given = [f"model={preset}", *([f"model.path={quoted(path)}"] if path else []), *keys]
    command = [sys.executable, "-m", "pytest", str(SWEEP), "-q", "-p", "no:cacheprovider", "--tb=short"]
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


def rows(out: Path, names: Sequence[str], stage: str) -> Iterator[tuple[str, ...]]:
    """The table's rows, from what the runs wrote."""
    for name in names:
        for file in sorted((out / name).glob(f"*/*/{stage}/metrics.json")):
            metrics = msgspec.json.decode(file.read_bytes(), type=Metrics)
            figures = {**metrics.figures, **(metrics.quality or {})}
            tokens = sum(sample.tokens for sample in metrics.samples) / max(len(metrics.samples), 1)
            values = [figures.get(key) for key in ("pages_per_s", "ttft_ms", "tpot_ms")]
            shown = (number(value) for value in (*values, tokens, figures.get("cer"), figures.get("peak_memory_gib")))
            yield (inline(name), metrics.fingerprint.engine or "", *shown)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("models", nargs="+", metavar="NAME=PRESET[:PATH]")
    parser.add_argument("--engine", default="reference", choices=("reference", "compiled", "all"))
    parser.add_argument("--stage", default="direct_inference")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="overrides for all of them")
    given = parser.parse_args(arguments)
    models = {}
    for text in given.models:
        name, equals, model = text.partition("=")
        if not equals or not model or not NAME.fullmatch(name) or name.endswith((".log", ".md")):
            parser.error(f"{text!r} is not NAME=PRESET[:PATH], such as glm=glm_ocr:/models/GLM-OCR; NAME becomes the "
                         "directory OUT/NAME: letters, digits, and space . _ + - after the first one, no .log or .md")
        if name in models:
            parser.error(f"two models are named {name}: their runs would be one directory")
        if (given.out / name).exists():
            parser.error(f"{given.out / name} is there already, whose figures are not of this call: name another OUT")
        models[name] = model
    if not re.fullmatch(r"\w+", given.stage):
        parser.error(f"--stage {given.stage}: name one stage, whose figures the table shows")
    try:
        given.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"the directory {given.out} cannot be made: {error.strerror}")
    failed, stopped = [], False
    for name, model in models.items():
        try:
            if run_model(given.out, name, model, given.engine, given.stage, given.set):
                failed.append(name)
        except KeyboardInterrupt:
            failed.append(name)
            stopped = True
            break
    text = table(HEAD, list(rows(given.out, list(models), given.stage)), left=2)
    (given.out / "models.md").write_text(text, encoding="utf-8")
    print(text)
    for name in failed:
        print(f"{name} failed: {given.out / name}.log", file=sys.stderr)
    if stopped:
        print(f"stopped at {failed[-1]}, so the table is not whole", file=sys.stderr)
    return INTERRUPTED if stopped else bool(failed)


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGHUP):  # else the run, which has a session of its own, would go on
        signal.signal(number, signal.default_int_handler)
    sys.exit(main())
