"""The stage `nsys`: run the test again in a child under Nsight Systems and capture one NVTX range.

The tool records from the opening of the range in the domain `llmprof` to its end, so neither loading nor warm-up
(domain `llmprof.warmup`) is in the report.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pytest_llmprof.analysis.metrics import TRACE_METRICS
from pytest_llmprof.errors import ArtifactError
from pytest_llmprof.measure.phases import DOMAIN
from pytest_llmprof.records.checks import Check
from pytest_llmprof.stages.base import CheckContext, ToolContext, ToolStagePlugin
from pytest_llmprof.stages.child import Ended, ToolFailed
from pytest_llmprof.stages.nsys.options import NsysOptions
from pytest_llmprof.stages.nsys.records import NsysBlock
from pytest_llmprof.stages.nsys.section import FILES, nsys_section
from pytest_llmprof.stages.tools import Program, Tool, range_of, start

NSYS = Program(
    name="nsys",
    title="Nsight Systems",
    oldest=(2022, 4),
    places=(
        "/opt/nvidia/nsight-systems/*/bin/nsys",
        "/opt/nvidia/nsight-systems/*/target-linux-x64/nsys",
        "/opt/nvidia/nsight-compute/*/host/target-linux-x64/nsys",
        "/usr/local/cuda*/bin/nsys",
    ),
)
_NAME = NSYS.name
_DEBIAN = Path("/usr/lib/x86_64-linux-gnu/nsight-systems")


def nsys_command(tool: Tool, options: NsysOptions, out_dir: Path, *, cuda: bool) -> list[str]:
    """nsys's part of the command. Without CUDA only NVTX and the C library's calls are traced."""
    end = "stop" if options.occurrences == 1 else f"repeat:{options.occurrences}"
    return [
        *(str(tool.path), "profile"),
        *(["--trace=cuda,nvtx", "--cuda-graph-trace=node"] if cuda else ["--trace=nvtx,osrt"]),
        *("--sample=none", "--cpuctxsw=none"),
        *("--capture-range=nvtx", f"--nvtx-capture={range_of(options.capture)}@{DOMAIN}", f"--capture-range-end={end}"),
        *("--force-overwrite=true", "--export=sqlite", "-o", str(out_dir / _NAME)),
        *options.args,
    ]


def _run(context: ToolContext) -> None:
    options: NsysOptions = context.options
    tool = start(NSYS, context)
    if tool is None:
        return
    cuda = context.device.startswith("cuda")
    command = nsys_command(tool, options, context.out_dir, cuda=cuda)
    context.block.occurrences = options.occurrences
    # By default nsys looks at registered strings only, which the range's name is not.
    env = {**options.env, "NSYS_NVTX_PROFILER_REGISTER_ONLY": "0"}
    ended = context.child.run(command, env, _NAME)
    ended.check_under(tool)
    paths = _exports(context, tool, ended)
    if not paths:
        ended.check_nvtx(tool)
        raise ToolFailed(
            f"nsys captured nothing: the range {range_of(options.capture)}@{DOMAIN} (pipeline.nsys.capture="
            f"{options.capture}) never opened; this test opens {', '.join(ended.opened_ranges())}",
            ended.last_lines,
        )
    _summarise(context, tool, ended, paths, cuda=cuda)


def exports_in(directory: Path) -> list[Path]:
    """The reports as SQLite, in their order."""
    return sorted(directory.glob(f"{_NAME}*.sqlite"), key=lambda path: (len(path.name), path.name))


def _exports(context: ToolContext, tool: Tool, ended: Ended) -> list[Path]:
    """The exported reports in their order; none where nsys recorded nothing."""
    exports = exports_in(context.out_dir)
    raw = [path for suffix in ("nsys-rep", "qdstrm", "qdrep") for path in context.out_dir.glob(f"{_NAME}*.{suffix}")]
    if len(exports) < sum(path.suffix == ".nsys-rep" for path in raw) or (raw and not exports):
        problem = f"nsys wrote {raw[0].name}, but its export to SQLite failed"
    elif not exports and "mporter error" in ended.output:
        problem = "nsys could not make a report of what it had recorded (importer error)"
    else:
        return exports
    raise ToolFailed(f"{problem}; {importer_advice(tool)}", ended.last_lines)


def importer_advice(tool: Tool) -> str:
    """What helps where its reports are not exported."""
    if tool.path.resolve().is_relative_to(_DEBIAN) and not (_DEBIAN / "host-linux-x64").exists():
        return (
            "Debian's package has its importer where nsys does not look for it: "
            f"ln -s /usr/lib/nsight-systems/host-linux-x64 {_DEBIAN}/"
        )
    return (
        "a missing library (libdw, libelf, libdebuginfod, libssh) can be named with "
        "pipeline.nsys.env={LD_LIBRARY_PATH: /path}"
    )


def _summarise(context: ToolContext, tool: Tool, ended: Ended, paths: list[Path], *, cuda: bool) -> None:
    from pytest_llmprof.stages.nsys.export import read_reports
    from pytest_llmprof.stages.nsys.summary import summary, write_nsys_tables

    try:
        report = read_reports(paths, DOMAIN)
    except ArtifactError as error:
        raise ToolFailed(f"the export of nsys {tool.version} cannot be read: {error}") from error
    if not report.ranges:
        ended.check_nvtx(tool)
        raise ToolFailed(
            f"NVTX recorded no range of the domain {DOMAIN} under nsys {tool.version}: see output.log and "
            f"{paths[0].name} (pip install nvtx==0.2.11 helps an nsys older than 2024)"
        )
    if cuda and not report.kernels:
        raise ToolFailed(
            f"nsys {tool.version} captured no CUDA kernel in {context.options.capture}: its CUPTI may be too old for "
            "this driver (use a newer nsys: pipeline.nsys.path), another profiler may hold the GPU, or this range "
            "launches none"
        )
    context.block = summary(report, context.block, gpu=cuda)
    write_nsys_tables(context.out_dir, report, context.block)
    context.figures |= {metric.name: getattr(context.block, metric.name) for metric in TRACE_METRICS}


def _checks(context: CheckContext) -> Iterable[Check]:
    from pytest_llmprof.stages.nsys.checks import checks

    return checks(context)


def plugin(workload: str) -> ToolStagePlugin:
    """The stage as it is registered; its child runs the stage *workload*."""
    return ToolStagePlugin(
        _NAME,
        options=NsysOptions,
        metrics=TRACE_METRICS,
        files=FILES,
        blocks={_NAME: NsysBlock},
        report=nsys_section,
        block=NsysBlock,
        outputs=True,
        why_no_output=f"outputs of the test go to its tmp/workload/{workload}",
        workload=workload,
        checks=_checks,
        run=_run,
    )
