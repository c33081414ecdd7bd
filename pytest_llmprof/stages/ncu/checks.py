"""Checks for `llmprof doctor`: the program, and one kernel profiled with it as the stage would."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pytest_llmprof.errors import StageError
from pytest_llmprof.records.checks import Check, ok, problem
from pytest_llmprof.stages.base import CheckContext
from pytest_llmprof.stages.ncu.stage import COUNTERS_ADVICE, NCU, NO_COUNTERS, Chosen, ncu_command
from pytest_llmprof.stages.probe import run_probe
from pytest_llmprof.stages.tools import Tool, find_tool, range_of
from pytest_llmprof.text.escape import one_line

_PROGRAM, _RECORDING = "Program", "Recording"


def checks(context: CheckContext) -> Iterator[Check]:
    """Find ncu and profile one kernel."""
    if not context.device.startswith("cuda"):
        found = f"it profiles CUDA kernels, and the model runs on {context.device}"
        yield problem("GPU", found, "leave this stage out")
        return
    options = context.settings.current.options
    try:
        tool = find_tool(NCU, options.path, options.env)
    except StageError as error:
        yield problem(_PROGRAM, str(error), "install Nsight Compute, or leave this stage out")
        return
    yield ok(_PROGRAM, f"{NCU.title} {tool.version}, {tool.path}")
    yield _recording(context, tool)


def _recording(context: CheckContext, tool: Tool) -> Check:
    options = replace(context.settings.current.options, launch_skip=0)
    with tempfile.TemporaryDirectory(prefix="llmprof-doctor-") as scratch:
        report = Path(scratch) / "probe.ncu-rep"
        command = ncu_command(tool, options, Chosen("all", (), None, 1), report)
        probe = run_probe(command, options.env, range_of(options.capture), 1, context.device)
        if NO_COUNTERS in probe.output:
            return problem(_RECORDING, f"it may not read the GPU's counters ({NO_COUNTERS})", COUNTERS_ADVICE)
        if probe.nvtx is not None and not probe.nvtx.records:
            found = f"nvtx {probe.nvtx.version} records nothing under ncu {tool.version}, and reports no error"
            return problem(_RECORDING, found, "pip install nvtx==0.2.11, or use a newer ncu (pipeline.ncu.path)")
        if probe.code or not report.exists():
            lines = [line for line in probe.output.splitlines() if line.strip()]
            errors = [line for line in lines if line.startswith("==ERROR==")]
            last = one_line((errors or lines or ["nothing"])[-1])
            mend = "use a newer ncu (pipeline.ncu.path), and end other profilers"
            return problem(_RECORDING, f"no kernel was profiled (exit code {probe.code}): {last}", mend)
    return ok(_RECORDING, "one kernel, with its counters")
