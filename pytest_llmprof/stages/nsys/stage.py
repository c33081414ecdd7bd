"""The stage `nsys`: the test again in a child under Nsight Systems, one NVTX range of ours captured.

The tool starts to record when the range opens in the domain `llmprof` and stops when it closes, so neither
loading nor warm-up (domain `llmprof.warmup`) is in the report.
"""

from __future__ import annotations

from pathlib import Path

from pytest_llmprof.errors import ArtifactError
from pytest_llmprof.measure.phases import DOMAIN, ROUND
from pytest_llmprof.records.files import read_json
from pytest_llmprof.stages.base import ToolContext, ToolStagePlugin
from pytest_llmprof.stages.child import Ended, ToolFailed
from pytest_llmprof.stages.nsys.options import NsysOptions, check_nsys
from pytest_llmprof.stages.tools import Tool, find_tool

__all__ = ["check_ended", "check_nvtx", "nsys_command", "opened_ranges", "plugin", "range_of"]

_NAME = "nsys"
_DEBIAN = Path("/usr/lib/x86_64-linux-gnu/nsight-systems")


def range_of(capture: str) -> str:
    """The NVTX range that the option `capture` means."""
    return ROUND if capture == "all" else capture


def nsys_command(tool: Tool, options: NsysOptions, out_dir: Path, *, cuda: bool) -> list[str]:
    """The command up to the program that it runs. Without CUDA only NVTX and the C library's calls are traced."""
    end = "stop" if options.occurrences == 1 else f"repeat:{options.occurrences}"
    return [
        str(tool.path),
        "profile",
        f"--trace={'cuda,nvtx' if cuda else 'nvtx,osrt'}",
        *(["--cuda-graph-trace=node"] if cuda else []),
        "--sample=none",
        "--cpuctxsw=none",
        "--capture-range=nvtx",
        f"--nvtx-capture={range_of(options.capture)}@{DOMAIN}",
        f"--capture-range-end={end}",
        "--force-overwrite=true",
        "--export=sqlite",
        "-o",
        str(out_dir / _NAME),
        *options.args,
    ]


def _run(context: ToolContext) -> None:
    options: NsysOptions = context.options
    if not context.settings.current.enable:
        context.child.run([], options.env, "pytest").check("pytest")
        return
    tool = find_tool(_NAME, options.path, options.env)
    cuda = context.device.startswith("cuda")
    command = nsys_command(tool, options, context.out_dir, cuda=cuda)
    context.figures.update(
        tool={"path": str(tool.path), "version": tool.version},
        capture=options.capture,
        occurrences=options.occurrences,
    )
    # The range's name is not a registered string, which is all that nsys looks at by itself.
    env = {**options.env, "NSYS_NVTX_PROFILER_REGISTER_ONLY": "0"}
    ended = context.child.run(command, env, _NAME)
    check_ended(ended, tool)
    paths = _reports(context, tool, ended)
    if not paths:
        check_nvtx(ended, tool)
        raise ToolFailed(
            f"nsys captured nothing: the range {range_of(options.capture)}@{DOMAIN} (pipeline.nsys.capture="
            f"{options.capture}) never opened; this test opens {opened_ranges(ended)}",
            ended.last_lines,
        )
    _summarise(context, tool, ended, paths, cuda=cuda)


def check_ended(ended: Ended, tool: Tool) -> None:
    """Raise what came of the child where it did not pass.

    Its own failure comes first; an nvtx that stays silent, which the next run would stumble over, is said with it.
    """
    try:
        ended.check(tool.name)
    except ToolFailed as error:
        if silent := _silent(ended, tool):
            raise ToolFailed(f"{error}. Besides, {silent}", error.details) from None
        raise


def check_nvtx(ended: Ended, tool: Tool) -> None:
    """Raise where the child's nvtx package had nothing to record with, which it does not say itself."""
    if silent := _silent(ended, tool):
        raise ToolFailed(silent)


def _silent(ended: Ended, tool: Tool) -> str | None:
    if ended.outcome is None or ended.outcome["nvtx"]["records"]:
        return None
    nvtx = ended.outcome["nvtx"]
    return (
        f"NVTX recorded nothing under {tool.name} {tool.version}: the package nvtx {nvtx['version']} asks for what "
        f"this {tool.name} does not know, and stays silent; pip install nvtx==0.2.11, or use a newer {tool.name}"
    )


def opened_ranges(ended: Ended) -> str:
    """The ranges that the child's measured pass had, as a text."""
    metrics = read_json(Path((ended.outcome or {})["dir"]) / "metrics.json")
    names = dict.fromkeys(name for sample in metrics["samples"] for name in sample["phases"])
    return ", ".join(["all", *names, *(["step"] if "decode" in names else [])])


def _reports(context: ToolContext, tool: Tool, ended: Ended) -> list[Path]:
    """The exported reports in their order; none where nsys recorded nothing."""
    there = sorted(context.out_dir.glob(f"{_NAME}*.sqlite"), key=lambda path: (len(path.name), path.name))
    raw = [path for suffix in ("nsys-rep", "qdstrm", "qdrep") for path in context.out_dir.glob(f"{_NAME}*.{suffix}")]
    if len(there) < len([path for path in raw if path.suffix == ".nsys-rep"]) or (raw and not there):
        raise ToolFailed(
            f"nsys wrote {raw[0].name}, but its export to SQLite failed; {_what_it_misses(tool)}",
            ended.last_lines,
        )
    if not there and "mporter error" in ended.output:
        raise ToolFailed(
            f"nsys could not make a report of what it had recorded (importer error); {_what_it_misses(tool)}",
            ended.last_lines,
        )
    return there


def _what_it_misses(tool: Tool) -> str:
    if tool.path.resolve().is_relative_to(_DEBIAN) and not (_DEBIAN / "host-linux-x64").exists():
        return (
            "Debian's package has its importer where it is not looked for: "
            f"ln -s /usr/lib/nsight-systems/host-linux-x64 {_DEBIAN}/"
        )
    return (
        "a library that it misses (libdw, libelf, libdebuginfod, libssh) can be named with "
        "pipeline.nsys.env={LD_LIBRARY_PATH: /path}"
    )


def _summarise(context: ToolContext, tool: Tool, ended: Ended, paths: list[Path], *, cuda: bool) -> None:
    from pytest_llmprof.stages.nsys.export import read_report
    from pytest_llmprof.stages.nsys.summary import summary, write_nsys_tables

    try:
        reports = [read_report(path, DOMAIN) for path in paths]
    except ArtifactError as error:
        raise ToolFailed(f"nsys {tool.version} exported what cannot be read: {error}") from error
    if not any(report.ranges for report in reports):
        check_nvtx(ended, tool)
        raise ToolFailed(
            f"NVTX recorded no range of the domain {DOMAIN} under nsys {tool.version}: see output.log and "
            f"{paths[0].name} (pip install nvtx==0.2.11 helps an nsys older than 2024)"
        )
    if cuda and not any(report.kernels for report in reports):
        raise ToolFailed(
            f"nsys {tool.version} captured no CUDA kernel in {context.options.capture}: its CUPTI may be too old for "
            "this driver (use a newer nsys: pipeline.nsys.path), another profiler may hold the card, or this range "
            "launches none"
        )
    write_nsys_tables(context.out_dir, reports, with_kernels=cuda)
    context.figures.update(summary(reports, card=cuda))


def plugin(workload: str) -> ToolStagePlugin:
    """The stage as it is registered; its child runs the stage *workload*."""
    return ToolStagePlugin(_NAME, options=NsysOptions, check=check_nsys, outputs=True, workload=workload, run=_run)
