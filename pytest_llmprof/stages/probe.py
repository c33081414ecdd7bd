"""Checks of a tool for `llmprof doctor`: the program, and whether it records a small process.

The process opens a few NVTX ranges with a small operation in each, which takes seconds.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from pytest_llmprof.errors import StageError
from pytest_llmprof.measure.phases import DOMAIN
from pytest_llmprof.records.checks import Check, ok, problem
from pytest_llmprof.stages.child import Nvtx
from pytest_llmprof.stages.tools import Program, Tool, find_tool, run_program

RECORDING = "Recording"
"""The name of the check of what is recorded."""
_PROGRAM_NAME = "Program"
_TIMEOUT_S = 180.0
_MARK = "llmprof-nvtx: "
_PROGRAM = """
import json, sys
from importlib.metadata import version
import nvtx
domain, name, count, device = sys.argv[1:]
if device != "cpu":
    import torch
    torch.ones(8, device=device).sum().item()
for _ in range(int(count)):
    with nvtx.annotate(name, domain=domain):
        if device != "cpu":
            torch.ones(8, device=device).sum().item()
records = type(nvtx.get_domain(domain)).__name__ != "DummyDomain"
print("llmprof-nvtx: " + json.dumps({"version": version("nvtx"), "records": records}), flush=True)
"""


@dataclass(frozen=True)
class Probe:
    """How the process ended."""

    code: int
    output: str
    """What it and the tool wrote."""
    nvtx: Nvtx | None
    """None where it did not come to its end."""


def find_program(program: Program, path: str | None, env: Mapping[str, str]) -> tuple[Check, Tool | None]:
    """Look for the tool as its stage does; None where it cannot be used."""
    try:
        tool = find_tool(program, path, env)
    except StageError as error:
        return problem(_PROGRAM_NAME, str(error), f"install {program.title}, or leave this stage out"), None
    return ok(_PROGRAM_NAME, f"{program.title} {tool.version}, {tool.path}"), tool


def run_probe(command: Sequence[str], env: Mapping[str, str], name: str, count: int, device: str) -> Probe:
    """Open the range *name* *count* times behind *command*, a tool's, with an operation on *device* in each."""
    words = [*command, sys.executable, "-c", _PROGRAM, DOMAIN, name, str(count), device]
    try:
        done = run_program(words, env, _TIMEOUT_S)
    except OSError as error:
        return Probe(1, f"{words[0]} cannot be run: {error.strerror}", None)
    except subprocess.TimeoutExpired:
        return Probe(1, f"no end in {_TIMEOUT_S:g} s", None)
    output = done.stdout + done.stderr
    line = next((line for line in output.splitlines() if line.startswith(_MARK)), None)
    nvtx = None if line is None else msgspec.convert(json.loads(line.removeprefix(_MARK)), Nvtx)
    return Probe(done.returncode, output, nvtx)


def unrecorded_nvtx(probe: Probe, tool: Tool) -> Check | None:
    """The problem that the package nvtx records nothing under *tool*; None where it does, or that is not known."""
    if probe.nvtx is None or probe.nvtx.records:
        return None
    found = f"nvtx {probe.nvtx.version} records nothing under {tool.name} {tool.version}, and reports no error"
    mend = f"pip install nvtx==0.2.11, or use a newer {tool.name} (pipeline.{tool.name}.path)"
    return problem(RECORDING, found, mend)
