from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace
from report_helpers import CATALOGUE, STAGES, report

from pytest_llmprof.errors import ArtifactError
from pytest_llmprof.records.environment import Environment, Gpu
from pytest_llmprof.records.metrics import Energy, ErrorRecord, Metrics, Peak, RoundEnergy, Spread
from pytest_llmprof.records.stage import StageRecords
from pytest_llmprof.report import write_report
from pytest_llmprof.stages.torch_profiler.records import Profile
from pytest_llmprof.text.numbers import change_range, number

STAGE = STAGES["torch_profiler"]


def _sections(text: str) -> list[str]:
    return re.findall(r"^## (.*)$", text, re.MULTILINE)


def test_a_whole_report(stage_dir: Path) -> None:
    write_report(stage_dir, STAGE, CATALOGUE)
    text = (stage_dir / "report.md").read_text(encoding="utf-8")
    assert text.startswith("# test_pages/test_pages-base · torch_profiler\n\n**OK.** 3 pages in 3 rounds")
    assert _sections(text) == [
        "Metrics",
        "What to look at",
        "Phases",
        "Quality",
        "Gates",
        "Slowest pages",
        "Profiled window",
        "Environment",
        "Files",
    ]
    assert "| Time to first token (ms) | 63.4 | 0.634 | 57.1 | 69.7 | 66.6 |" in text
    assert "The profiler recorded one batch, 32 decode steps (at most 32 tokens a batch)" in text
    parts = "window 1.64 s, stop 0.500 s, export 0.320 s, release 0.140 s"
    assert f"Profiling added 2.80 s to the measured rounds ({parts})." in text
    assert "| – sam | 17.2 | 0.172 | 0.1 % |" in text
    assert "| decode | 15,990 | 160 | 99.3 % |" in text
    assert "| cer | `<=0.05` | 0.0123 | passed |" in text
    assert "3 pages scored, 2 of them against a true text." in text
    # 1.872 ms of kernels in a clean step of 15.6 ms
    assert "| GPU busy in a decode step (kernel time / clean step time) | 12.0 % |" in text
    assert "[viz/predictions.md](viz/predictions.md): gallery of pages and answers" in text
    assert "report.md](" not in text
    assert text.count("\n\n\n") == 0
    slowest = text[text.index("## Slowest pages") :]
    assert re.findall(r"^\| (list\\\|two|letter|receipt) ", slowest, re.MULTILINE) == [
        r"list\|two",
        "letter",
        "receipt",
    ]


def test_every_table_row_has_the_columns_of_its_head(stage_dir: Path) -> None:
    write_report(stage_dir, STAGE, CATALOGUE)
    columns = 0
    for line in (stage_dir / "report.md").read_text(encoding="utf-8").splitlines():
        if not line.startswith("|"):
            columns = 0
            continue
        cells = len(re.findall(r"(?<!\\)\|", line)) - 1
        columns = columns or cells
        assert cells == columns, line


def test_missing_metrics_say_why_and_empty_sections_are_left_out(
    metrics: Metrics, environment: Environment
) -> None:
    metrics.figures.update(preprocess_ms=1.0, tpot_ms=None, tokens_per_s=None, peak_memory_gib=None)
    metrics.fingerprint.device = "cpu"
    metrics.gates, metrics.quality, metrics.quality_reason = [], None, "the weights are random"
    environment = replace(environment, gpu=None, gpu_reason="the device is cpu")
    text = report(StageRecords(metrics, {"profile": None}, environment))
    assert "| Peak device memory (GiB) | n/a (not recorded on a CPU) |" in text
    assert "| Decode (tokens/s) | n/a (needs answers whose tokens come at two times or more) |" in text
    assert "## Quality\n\nn/a: the weights are random\n" in text
    assert "| GPU | none (the device is cpu) |" in text
    assert _sections(text) == ["Metrics", "Phases", "Quality", "Slowest pages", "Environment"]


def test_a_callable(metrics: Metrics) -> None:
    metrics.figures = dict.fromkeys(metrics.figures) | {"total_ms": 2.5, "other_ms": 0.1, "round_s": 0.0025}
    metrics.kind, metrics.spread, metrics.samples, metrics.quality, metrics.gates = "callable", {}, [], None, []
    metrics.prompt = metrics.dataset = metrics.model = metrics.deterministic = None
    metrics.pages = 1
    metrics.spread = {"total_ms": Spread(2.5, 2.5, 2.5, 2.5, iqr=0.1)}
    text = report(StageRecords(metrics))
    assert "**OK.** A callable, 3 rounds." in text
    # It has no pages to take a minimum over.
    assert "| Total a call (ms) | 2.50 | 0.100 |  |  |  |" in text
    assert "Medians over rounds. IQR is the noise: the spread over rounds." in text
    assert "page" not in text.partition("## Metrics")[2]
    metrics.iterations = 256
    assert "**OK.** A callable, 3 rounds of 256 calls." in report(StageRecords(metrics))
    assert "n/a" not in text
    assert _sections(text) == ["Metrics"]


def test_a_low_error_rate_keeps_its_digits(records: StageRecords) -> None:
    records.metrics.quality = {"cer": 0.000569}
    assert " CER 0.000569. " in report(records)


def test_failed_pages_and_gates_come_first(records: StageRecords) -> None:
    metrics = records.metrics
    metrics.gates[0].figure, metrics.gates[0].outcome = 0.2, "failed"
    assert "**Failed:** outside the limit of cer." in report(records)
    metrics.status = "error"
    metrics.errors = [
        ErrorRecord("scan 1", "cannot read a.png: <truncated> | `file`\nmore"),
        ErrorRecord(None, "no kernel"),
    ]
    text = report(records)
    assert "**Failed:** 2 errors, see below." in text
    assert _sections(text)[0] == "Errors"
    assert "- **scan 1**: cannot read a.png: &lt;truncated&gt; \\| \\`file\\` more\n- no kernel\n" in text


def test_untrusted_text_stays_text(records: StageRecords, profile: Profile, tmp_path: Path) -> None:
    evil = "x|y](http://evil) <script>alert(1)</script> `z`\n# title\u202e"
    metrics, environment = records.metrics, records.environment
    assert metrics.dataset is not None
    assert metrics.model is not None
    assert environment is not None
    metrics.test = metrics.prompt = metrics.dataset.name = evil
    metrics.model = replace(metrics.model, name=evil)
    metrics.samples[0] = replace(metrics.samples[0], page=evil)
    profile.top_kernels[0].name = profile.top_operators[0].phase = evil
    environment = replace(environment, host=replace(environment.host, cpu=evil))
    dataclasses.replace(records, environment=environment).write(tmp_path)
    (tmp_path / "a<b>.txt").touch()
    write_report(tmp_path, STAGE, CATALOGUE)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    outside_code = re.sub(r"`[^`\n]*`", "", text.replace("\\`", ""))
    assert "<script>" not in outside_code
    assert "](http://evil)" not in outside_code.replace("\\](", "")
    assert "\n# title" not in text
    assert "\u202e" not in text
    assert "[a&lt;b&gt;.txt](a%3Cb%3E.txt)" in text


@pytest.mark.parametrize("blocks", [{}, {"profile": Profile()}, {"profile": {"kernels": "of another plugin"}}])
def test_poor_metrics_still_give_a_report(blocks: dict[str, object]) -> None:
    metrics = Metrics(test="test", id="test_it.py::test", stage="torch_profiler", kind=None, status="ok")
    text = report(StageRecords(metrics, blocks))
    assert text.startswith("# test · torch_profiler\n\n**OK.**")
    assert "n/a" not in text


def test_a_missing_or_broken_metrics_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"metrics\.json"):
        write_report(tmp_path, STAGE, CATALOGUE)
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(ArtifactError, match="not JSON"):
        write_report(tmp_path, STAGE, CATALOGUE)


def test_a_report_needs_no_environment(tmp_path: Path, metrics: Metrics) -> None:
    StageRecords(metrics).write(tmp_path)
    write_report(tmp_path, STAGE, CATALOGUE)
    assert "## Environment" not in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_reports_do_not_import_torch(stage_dir: Path) -> None:
    script = f"""
import sys
from pathlib import Path
from pytest_llmprof.report import write_report
light = not {{"numpy", "torch"}}.intersection(sys.modules)
from pytest_llmprof.records.catalogue import Catalogue
from pytest_llmprof.stages.torch_profiler.stage import plugin
write_report(Path({str(stage_dir)!r}), plugin(), Catalogue())
print(light, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True False"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "n/a"),
        (0, "0"),
        (0.01234, "0.0123"),
        (0.634, "0.634"),
        (1.234, "1.23"),
        (45.67, "45.7"),
        (99.97, "100"),
        (1234.5, "1,234"),
        (-2.5, "-2.50"),
    ],
)
def test_numbers_have_about_three_digits(value: float | None, shown: str) -> None:
    assert number(value) == shown


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [
        (1.012, 1.03, "+1.2 to +3.0 %"),
        (0.6, 1.1, "-40.0 to +10.0 %"),
        (0.6, 250.0, "-40.0 % to over 100 x"),
    ],
)
def test_both_ends_of_a_range_have_their_unit(low: float, high: float, shown: str) -> None:
    assert change_range(low, high) == shown


def test_memory_energy_and_the_gpus_state(records: StageRecords, environment: Environment, gpu: Gpu) -> None:
    metrics = records.metrics
    plain = report(records)
    assert "Peak GiB" not in plain
    assert "Share of a page" in plain
    assert "| GPU state |" in plain
    metrics.phase_peaks = {"vision": Peak(3 * 2**30, 4 * 2**30)}
    metrics.energy = Energy(update_s=0.1, rounds=[RoundEnergy(None, None, "too short: 0.2 s")])
    held = {"power": 12.5, "thermal": 0.0}
    environment = replace(environment, gpu_after=replace(gpu, temperature_c=71), gpu_throttled_ms=held)
    records = dataclasses.replace(records, environment=environment)
    text = report(records)
    assert re.search(r"^\| vision \| 28.0 \| .* \| 3.00 \|$", text, re.MULTILINE)
    assert "| Energy a page (J) | n/a (too short: 0.2 s) |" in text
    assert "| GPU state before |" in text
    assert re.search(r"^\| GPU state after \| .*71 °C", text, re.MULTILINE)
    assert "| Throttled during the rounds | power 12.5 ms |" in text
    held["power"] = 0.0
    metrics.figures.update(joules_per_page=250.0, joules_per_token=0.25)
    text = report(records)
    assert "| Energy a page (J) | 250 |" in text
    assert "not at all, by the driver's counters" in text


def test_a_batchs_phases_are_shares_of_the_batch(metrics: Metrics) -> None:
    metrics.batch_size = 8
    metrics.figures.update(batch_total_ms=31_980.0, batch_tokens_per_s=500.0)
    text = report(StageRecords(metrics))
    assert "| Phase | Median ms | IQR ms | Share of a batch |" in text
    assert "| decode | 15,990 | 160 | 50.0 % |" in text
    assert "| Decode of a batch (tokens/s) | 500 |" in text
    metrics.batch_size = 1
    assert "of a batch" not in report(StageRecords(metrics))
