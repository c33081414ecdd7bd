"""Checks for `llmprof doctor`: the program, and a small recording with it of what the stage would record."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from pytest_llmprof.errors import ArtifactError
from pytest_llmprof.measure.phases import DOMAIN
from pytest_llmprof.records.checks import Check, not_checked, ok, problem, warning
from pytest_llmprof.stages.base import CheckContext
from pytest_llmprof.stages.nsys.stage import NSYS, exports_in, importer_advice, nsys_command
from pytest_llmprof.stages.probe import RECORDING, find_program, run_probe, unrecorded_nvtx
from pytest_llmprof.stages.tools import Tool, last_line, range_of
from pytest_llmprof.text.escape import one_line

_SAMPLES = "CPU samples"
_PARANOID = Path("/proc/sys/kernel/perf_event_paranoid")
_MOST_FOR_SAMPLES = 2


def checks(context: CheckContext) -> Iterator[Check]:
    """Find nsys, record one NVTX range and a kernel with it, and read the report back."""
    options = context.settings.current.options
    program, tool = find_program(NSYS, options.path, options.env)
    yield program
    if tool is not None:
        yield _recording(context, tool)
        yield _samples(options.args)


def _recording(context: CheckContext, tool: Tool) -> Check:
    options, cuda = context.settings.current.options, context.device.startswith("cuda")
    with tempfile.TemporaryDirectory(prefix="llmprof-doctor-") as scratch:
        directory = Path(scratch)
        command = nsys_command(tool, options, directory, cuda=cuda)
        env = {**options.env, "NSYS_NVTX_PROFILER_REGISTER_ONLY": "0"}
        probe = run_probe(command, env, range_of(options.capture), options.occurrences, context.device)
        if unrecorded := unrecorded_nvtx(probe, tool):
            return unrecorded
        return _read_back(exports_in(directory), probe.code, probe.output, tool, cuda=cuda)


def _read_back(paths: list[Path], code: int, output: str, tool: Tool, *, cuda: bool) -> Check:
    from pytest_llmprof.stages.nsys.export import read_reports

    if not paths:
        found = f"no report (exit code {code}); last line: {one_line(last_line(output))}"
        return problem(RECORDING, found, importer_advice(tool))
    try:
        report = read_reports(paths, DOMAIN)
    except ArtifactError as error:
        return problem(RECORDING, f"its export cannot be read: {error}", "use another version (pipeline.nsys.path)")
    if not report.ranges:
        return problem(RECORDING, "the report holds no NVTX range", "use a newer nsys (pipeline.nsys.path)")
    if cuda and not report.kernels:
        mend = "use a newer nsys (pipeline.nsys.path), and end other profilers"
        return problem(RECORDING, "the report holds no CUDA kernel: its CUPTI may be too old for this driver", mend)
    return ok(RECORDING, "NVTX ranges and CUDA kernels" if cuda else "NVTX ranges (without a GPU, phases alone)")


def _samples(arguments: tuple[str, ...]) -> Check:
    """The kernel's limit on CPU samples, which only a user's own arguments ask for."""
    try:
        level = int(_PARANOID.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return not_checked(_SAMPLES, f"the system does not tell its limit ({_PARANOID})")
    shown = f"perf_event_paranoid is {level}"
    asked = any(one.startswith(("--sample=", "--cpuctxsw=")) and not one.endswith("=none") for one in arguments)
    if level > _MOST_FOR_SAMPLES and asked:
        mend = f"sysctl kernel.perf_event_paranoid={_MOST_FOR_SAMPLES} (root), or leave them out of pipeline.nsys.args"
        return warning(_SAMPLES, f"{shown}: nsys takes none", mend)
    return ok(_SAMPLES, shown if asked else f"{shown}; the stage takes none unless pipeline.nsys.args asks for them")
