"""Checks for `llmprof doctor`: the program, and one kernel profiled with it as the stage would."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pytest_llmprof.measure.checks import COUNTERS_ADVICE
from pytest_llmprof.records.checks import Check, ok, problem
from pytest_llmprof.stages.base import CheckContext
from pytest_llmprof.stages.ncu.stage import NCU, NO_COUNTERS, Chosen, ncu_command
from pytest_llmprof.stages.probe import RECORDING, find_program, run_probe, unrecorded_nvtx
from pytest_llmprof.stages.tools import Tool, last_line, range_of
from pytest_llmprof.text.escape import one_line


def checks(context: CheckContext) -> Iterator[Check]:
    """Find ncu and profile one kernel."""
    if not context.device.startswith("cuda"):
        found = f"it profiles CUDA kernels, and the model runs on {context.device}"
        yield problem("GPU", found, "leave this stage out")
        return
    options = context.settings.current.options
    program, tool = find_program(NCU, options.path, options.env)
    yield program
    if tool is not None:
        yield _recording(context, tool)


def _recording(context: CheckContext, tool: Tool) -> Check:
    options = replace(context.settings.current.options, launch_skip=0)
    with tempfile.TemporaryDirectory(prefix="llmprof-doctor-") as scratch:
        report = Path(scratch) / "probe.ncu-rep"
        command = ncu_command(tool, options, Chosen("all", (), None, 1), report)
        probe = run_probe(command, options.env, range_of(options.capture), 1, context.device)
        if NO_COUNTERS in probe.output:
            return problem(RECORDING, f"it may not read the GPU's counters ({NO_COUNTERS})", COUNTERS_ADVICE)
        if unrecorded := unrecorded_nvtx(probe, tool):
            return unrecorded
        if probe.code or not report.exists():
            found = f"no kernel was profiled (exit code {probe.code}): {one_line(last_line(probe.output))}"
            return problem(RECORDING, found, "use a newer ncu (pipeline.ncu.path), and end other profilers")
    return ok(RECORDING, "one kernel, with its counters")
