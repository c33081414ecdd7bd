"""The stage `ncu`: run the test again in a child under Nsight Compute and profile a few kernels of one NVTX range.

Each profiled launch is replayed several times, so no time here is one of the model: durations are those of single
launches. Without `clock_control=base` the clocks are as in the other stages.
"""

from __future__ import annotations

import csv
import io
import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_llmprof.errors import ArtifactError, StageError
from pytest_llmprof.measure.checks import COUNTERS_ADVICE
from pytest_llmprof.measure.phases import DOMAIN, STEP, SUB_PHASES
from pytest_llmprof.records.checks import Check
from pytest_llmprof.records.files import read_bytes, write_text
from pytest_llmprof.stages.base import CheckContext, ToolContext, ToolStagePlugin
from pytest_llmprof.stages.child import Ended, ToolFailed
from pytest_llmprof.stages.ncu.options import NcuOptions, check_ncu
from pytest_llmprof.stages.ncu.records import NcuBlock
from pytest_llmprof.stages.ncu.section import FILES, ncu_section
from pytest_llmprof.stages.tools import Program, Tool, range_of, run_program, start, tail

NCU = Program(
    name="ncu",
    title="Nsight Compute",
    oldest=(2022, 3),
    places=("/opt/nvidia/nsight-compute/*/ncu", "/usr/local/cuda*/bin/ncu"),
)
_NAME = NCU.name
NO_COUNTERS = "ERR_NVGPUCTRPERM"
"""What ncu prints where it may not read the GPU's performance counters."""
_PHASES = {"vision": ("vision", *SUB_PHASES), STEP: ("decode",)}
"""Range -> the phases of its kernels, where these are not just the phase of its name."""


@dataclass(frozen=True)
class Chosen:
    """Which launches are profiled."""

    source: str
    """The stage whose longest kernels these are, first (no stage of this run has such kernels), all, or regex."""
    kernels: tuple[str, ...]
    """Function names, the longest first."""
    pattern: str | None
    """Regular expression for function names; None takes any."""
    count: int
    """Launches at most."""


def _longest(path: Path, capture: str, number: int) -> list[str]:
    """The *number* functions with the most time in *capture*, of a kernels.csv; none of one with other columns."""
    from pytest_llmprof.analysis.kernel_names import function_name

    totals: dict[str, float] = {}
    phases = _PHASES.get(capture, (capture,))
    rows = csv.DictReader(io.StringIO(read_bytes(path).decode("utf-8", "replace")))
    try:
        if not {"name", "kind", "phase", "busy_ms"} <= set(rows.fieldnames or ()):
            return []
        for row in rows:
            if row["kind"] == "kernel" and (capture == "all" or row["phase"] in phases):
                name = function_name(row["name"])
                totals[name] = totals.get(name, 0.0) + float(row["busy_ms"])
    except (csv.Error, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} is broken: line {rows.line_num} is no row of kernels") from error
    return sorted(totals, key=lambda name: -totals[name])[:number]


def choose(options: NcuOptions, other_stages: Sequence[tuple[str, Path]]) -> Chosen:
    """What `kernels` means: `top:N` takes the first of *other_stages* whose kernels.csv has kernels of the range."""
    if options.kernels == "all":
        return Chosen("all", (), None, options.launch_count)
    if not options.kernels.startswith("top:"):
        return Chosen("regex", (), options.kernels, options.launch_count)
    number = int(options.kernels.removeprefix("top:"))
    for stage, directory in other_stages:
        path = directory / "kernels.csv"
        names = _longest(path, options.capture, number) if path.is_file() else []
        if names:
            pattern = f"^({'|'.join(map(re.escape, names))})$"
            return Chosen(stage, tuple(names), pattern, options.launch_count)
    return Chosen("first", (), None, min(number, options.launch_count))


def ncu_command(tool: Tool, options: NcuOptions, chosen: Chosen, report: Path) -> list[str]:
    """ncu's part of the command. The name of a push/pop range ends in a slash."""
    from pytest_llmprof.stages.ncu.export import METRICS

    sections = [word for name in options.sections for word in ("--section", name)] or ["--set", options.set]
    kernels = ["--kernel-name-base", "function", "--kernel-name", f"regex:{chosen.pattern}"] if chosen.pattern else []
    return [
        *(str(tool.path), "--target-processes", "all"),
        *("--nvtx", "--nvtx-include", f"{DOMAIN}@{range_of(options.capture)}/"),
        *kernels,
        *("--launch-skip", str(options.launch_skip), "--launch-count", str(chosen.count)),
        *("--clock-control", options.clock_control),
        *sections,
        *("--metrics", ",".join(METRICS)),
        *("--force-overwrite", "-o", str(report.with_suffix(""))),
        *options.args,
    ]


def _run(context: ToolContext) -> None:
    options: NcuOptions = context.options
    if context.settings.current.enable and not context.device.startswith("cuda"):
        raise StageError(
            f"ncu profiles CUDA kernels, and this test runs on {context.device} "
            f"(model.device={context.settings.model.device}): leave ncu out of --llmprof-stage here"
        )
    tool = start(NCU, context)
    if tool is None:
        return
    chosen = choose(options, context.other_stages)
    report = context.out_dir / f"{_NAME}.ncu-rep"
    block: NcuBlock = context.block
    block.chosen_by, block.chosen = chosen.source, list(chosen.kernels)
    block.launch_skip, block.launch_count = options.launch_skip, chosen.count
    block.clock_control = options.clock_control
    ended = context.child.run(ncu_command(tool, options, chosen, report), options.env, _NAME)
    if NO_COUNTERS in ended.output:
        raise ToolFailed(
            f"ncu may not read the GPU's performance counters ({NO_COUNTERS}): {COUNTERS_ADVICE}", ended.last_lines
        )
    ended.check_under(tool)
    if not report.exists():
        _captured_nothing(context, chosen, tool, ended)
    text = _export(tool, report)
    write_text(context.out_dir / "raw.csv", text)
    _summarise(context, chosen, tool, ended, text)


def _captured_nothing(context: ToolContext, chosen: Chosen, tool: Tool, ended: Ended) -> None:
    """Raise the reason why no kernel was profiled."""
    ended.check_nvtx(tool)
    capture = context.options.capture
    opened = ended.opened_ranges()
    name = f"{DOMAIN}@{range_of(capture)}/ (pipeline.ncu.capture={capture})"
    if capture not in opened:
        raise ToolFailed(f"ncu profiled no kernel: the range {name} never opened; this test opens {', '.join(opened)}")
    matching = f" whose function matches {chosen.pattern}" if chosen.pattern else ""
    skipped = f" after the first {context.options.launch_skip}" if context.options.launch_skip else ""
    raise ToolFailed(f"ncu profiled no kernel: the range {name} launches none{matching}{skipped}", ended.last_lines)


def _export(tool: Tool, report: Path) -> str:
    command = [str(tool.path), "--import", str(report), "--csv", "--page", "raw"]
    try:
        # Numbers in the tables depend on the locale.
        done = run_program(command, {**tool.env, "LC_ALL": "C"}, 300)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolFailed(f"{report.name} was written, but its export to CSV failed: {error}") from error
    if done.returncode:
        raise ToolFailed(
            f"{report.name} was written, but its export to CSV ended with exit code {done.returncode}",
            tail(done.stdout + done.stderr),
        )
    return done.stdout


def _summarise(context: ToolContext, chosen: Chosen, tool: Tool, ended: Ended, text: str) -> None:
    from pytest_llmprof.analysis.kernel_names import function_name
    from pytest_llmprof.stages.ncu.export import kernel_rows, read_csv, write_ncu_tables

    try:
        launches = read_csv(text, "raw.csv")
    except ArtifactError as error:
        raise ToolFailed(f"the export of ncu {tool.version} cannot be read: {error}") from error
    if not launches:
        _captured_nothing(context, chosen, tool, ended)
    rows = kernel_rows(launches)
    write_ncu_tables(context.out_dir, rows, launches)
    seen = {function_name(row.kernel) for row in rows}
    block: NcuBlock = context.block
    block.launches = len(launches)
    block.missing = [name for name in chosen.kernels if name not in seen]
    block.kernels = rows


def _checks(context: CheckContext) -> Iterable[Check]:
    from pytest_llmprof.stages.ncu.checks import checks

    return checks(context)


def plugin(workload: str) -> ToolStagePlugin:
    """The stage as it is registered; its child runs the stage *workload*."""
    return ToolStagePlugin(
        _NAME,
        options=NcuOptions,
        check=check_ncu,
        files=FILES,
        blocks={_NAME: NcuBlock},
        report=ncu_section,
        block=NcuBlock,
        outputs=False,
        why_no_output="the test has no outputs under it",
        workload=workload,
        checks=_checks,
        run=_run,
    )
