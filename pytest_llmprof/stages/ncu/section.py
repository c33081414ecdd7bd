"""The report's section on a test that ran again under Nsight Compute."""

from __future__ import annotations

from pytest_llmprof.records.stage import StageRecords
from pytest_llmprof.report.sections import Section
from pytest_llmprof.stages.ncu.export import LATENCY_BELOW, kernels_table
from pytest_llmprof.stages.ncu.records import NcuBlock
from pytest_llmprof.stages.tool_block import TOOL_FILES, tool_section, tool_text
from pytest_llmprof.text.escape import inline
from pytest_llmprof.text.markdown import code
from pytest_llmprof.text.numbers import count

_TITLE = "Nsight Compute"
FILES = {
    "kernels.md": "kernels, the longest",
    "kernels.csv": "kernels, all",
    "launches.csv": "profiled launches, one a row",
    "raw.csv": "every metric of every profiled launch, as ncu printed it",
    "ncu.ncu-rep": "the report, for ncu-ui",
    **TOOL_FILES,
}
"""What it writes into the stage directory, for the report."""
_HOW = {
    "all": "every kernel",
    "regex": "kernels that match pipeline.ncu.kernels",
    "first": "the first launches (no other stage of this test left a kernels.csv in this run)",
}


def ncu_section(records: StageRecords) -> Section | None:
    """Paragraphs and tables; no part where the tool did not run."""
    block = records.block("ncu", NcuBlock)
    return None if block is None else tool_section(_TITLE, block, [_text(block), kernels_table(block.kernels)])


def _text(block: NcuBlock) -> str:
    how = _HOW.get(block.chosen_by or "", f"the {len(block.chosen)} longest kernels of {inline(block.chosen_by or '')}")
    text = f"{tool_text(block, _TITLE)}: {how}"
    if block.launches is not None:
        text += f", {count(block.launches, 'launch', 'launches')} (at most {block.launch_count})"
    text += f". Bound is the unit nearest to its peak, or latency where none reaches {LATENCY_BELOW:g} % of it."
    if block.missing:
        names = ", ".join(code(name, 90, cell=False) for name in block.missing)
        text += f" Not among the profiled launches: {names}; raise pipeline.ncu.launch_count, or give "
        text += "pipeline.ncu.kernels a regular expression for them alone."
    return text + "\n"
