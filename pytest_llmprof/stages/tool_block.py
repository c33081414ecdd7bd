"""What the blocks of all stages under a tool share, in metrics.json and in the report."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from pytest_llmprof.report.sections import Section
from pytest_llmprof.text.escape import inline
from pytest_llmprof.text.markdown import code

TOOL_FILES = {
    "command.txt": "the command that ran",
    "output.log": "what the tool and the child wrote",
}
"""Files of every such stage, for the report."""


class ToolInfo(Struct):
    """The tool's program."""

    path: str
    version: str
    """As the tool reports it, "2025.3.1"."""


class ToolBlock(Struct, kw_only=True):
    """The block of a stage whose test ran under a tool."""

    tool: ToolInfo | None = None
    """Null where the tool is switched off."""
    capture: str | None = None
    """The NVTX range that was captured."""
    not_applied: list[str] = []
    """Lines at which the test ended because it computes with a time, which is null under a tool."""


def tool_text(block: ToolBlock, name: str) -> str:
    """The tool with its version and range: "Nsight Systems 2025.3.1, range `all`"."""
    version = block.tool.version if block.tool else ""
    return f"{name} {inline(version)}, range {code(block.capture or '', cell=False)}"


def tool_section(title: str, block: ToolBlock, parts: Sequence[str], warnings: Sequence[str] = ()) -> Section:
    """The section of a stage under a tool: *parts* where the tool ran, below a note on what was not checked."""
    where = "; ".join(code(line, 200, cell=False) for line in block.not_applied)
    note = (
        "Times are not applicable under the tool, so the test ended at its first line that computes with one: "
        f"{where}. What follows it was not checked in this stage.\n"
    )
    return Section(title, [note if where else "", *(parts if block.tool else ())], warnings=warnings)
