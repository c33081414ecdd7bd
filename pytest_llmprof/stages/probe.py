"""A few NVTX ranges and a small operation in a process under a tool: shows in seconds whether the tool records them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from pytest_llmprof.measure.phases import DOMAIN
from pytest_llmprof.stages.child import Nvtx

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


def run_probe(command: Sequence[str], env: Mapping[str, str], name: str, count: int, device: str) -> Probe:
    """Open the range *name* *count* times behind *command*, a tool's, with an operation on *device* in each."""
    words = [*command, sys.executable, "-c", _PROGRAM, DOMAIN, name, str(count), device]
    try:
        process = subprocess.Popen(
            words,
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        return Probe(1, f"{words[0]} cannot be run: {error.strerror}", None)
    try:
        output, _ = process.communicate(timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return Probe(1, f"no end in {_TIMEOUT_S:g} s", None)
    finally:
        with contextlib.suppress(ProcessLookupError):  # mostly all of it has ended
            os.killpg(process.pid, signal.SIGKILL)
    line = next((line for line in output.splitlines() if line.startswith(_MARK)), None)
    nvtx = None if line is None else msgspec.convert(json.loads(line.removeprefix(_MARK)), Nvtx)
    return Probe(process.returncode, output, nvtx)
