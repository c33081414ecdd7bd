from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pytest_llmprof.errors import ArtifactError
from pytest_llmprof.records.files import write_json
from pytest_llmprof.report import write_report
from pytest_llmprof.report.stage_report import render
from pytest_llmprof.text.numbers import number


def _sections(text: str) -> list[str]:
    return re.findall(r"^## (.*)$", text, re.MULTILINE)


def test_a_whole_report(stage_dir: Path) -> None:
    write_report(stage_dir)
    text = (stage_dir / "report.md").read_text(encoding="utf-8")
    assert text.startswith("# test_pages/test_pages-base · torch_profiler\n\n**OK.** 3 pages in 3 rounds")
    assert _sections(text) == [
        "Figures",
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
    assert "Window: one batch, 32 decode steps, at most 32 decode tokens." in text
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
    write_report(stage_dir)
    columns = 0
    for line in (stage_dir / "report.md").read_text(encoding="utf-8").splitlines():
        if not line.startswith("|"):
            columns = 0
            continue
        cells = len(re.findall(r"(?<!\\)\|", line)) - 1
        columns = columns or cells
        assert cells == columns, line


def test_missing_figures_say_why_and_empty_sections_are_left_out(
    metrics: dict[str, Any], environment: dict[str, Any]
) -> None:
    metrics["figures"].update(preprocess_ms=1.0, tpot_ms=None, tokens_per_s=None, peak_memory_gib=None)
    metrics["model"]["device"] = "cpu"
    metrics.update(profile=None, gates=[], quality=None, quality_reason="the weights are random")
    environment.update(gpu=None, gpu_reason="the device is cpu")
    text = render(metrics, environment, [])
    assert "| Peak device memory (GiB) | n/a (not recorded on a CPU) |" in text
    assert "| Decode (tokens/s) | n/a (needs answers whose tokens come at two times or more) |" in text
    assert "## Quality\n\nn/a: the weights are random\n" in text
    assert "| Card | none (the device is cpu) |" in text
    assert _sections(text) == ["Figures", "Phases", "Quality", "Slowest pages", "Environment"]


def test_a_callable(metrics: dict[str, Any]) -> None:
    figures = dict.fromkeys(metrics["figures"]) | {"total_ms": 2.5, "other_ms": 0.1, "round_s": 0.0025}
    metrics.update(kind="callable", figures=figures, spread={}, samples=[], quality=None, profile=None)
    metrics.update(gates=[], prompt=None, dataset=None, model=None, deterministic=None, pages=1)
    text = render(metrics, {}, [])
    assert "**OK.** A callable, 3 rounds." in text
    assert "| Total (ms) | 2.50 |" in text
    assert "n/a" not in text
    assert _sections(text) == ["Figures"]


def test_failed_pages_and_gates_come_first(metrics: dict[str, Any], environment: dict[str, Any]) -> None:
    metrics["gates"][0].update(figure=0.2, outcome="failed")
    assert "**Failed:** outside the limit of cer." in render(metrics, environment, [])
    metrics["status"] = "error"
    metrics["errors"] = [
        {"page": "scan 1", "error": "cannot read a.png: <truncated> | `file`\nmore"},
        {"page": None, "error": "no kernel"},
    ]
    text = render(metrics, environment, [])
    assert "**Failed:** 2 errors, see below." in text
    assert _sections(text)[0] == "Errors"
    assert "- **scan 1**: cannot read a.png: &lt;truncated&gt; \\| \\`file\\` more\n- no kernel\n" in text


def test_untrusted_text_stays_text(metrics: dict[str, Any], environment: dict[str, Any]) -> None:
    evil = "x|y](http://evil) <script>alert(1)</script> `z`\n# title\u202e"
    metrics["test"] = metrics["prompt"] = metrics["dataset"]["name"] = metrics["model"]["name"] = evil
    metrics["samples"][0]["page"] = evil
    metrics["profile"]["top_kernels"][0]["name"] = evil
    metrics["profile"]["top_operators"][0]["phase"] = evil
    environment["host"]["cpu"] = evil
    text = render(metrics, environment, ["a<b>.txt"])
    outside_code = re.sub(r"`[^`\n]*`", "", text.replace("\\`", ""))
    assert "<script>" not in outside_code
    assert "](http://evil)" not in outside_code.replace("\\](", "")
    assert "\n# title" not in text
    assert "\u202e" not in text
    assert "[a&lt;b&gt;.txt](a%3Cb%3E.txt)" in text


@pytest.mark.parametrize("broken", [{}, {"figures": None, "profile": {}, "samples": None, "gates": None}])
def test_a_poor_metrics_file_still_gives_a_report(broken: dict[str, Any]) -> None:
    text = render(broken, {}, [])
    assert text.startswith("# test · stage\n\n**OK.**")
    assert "n/a" not in text


def test_a_missing_or_broken_metrics_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"metrics\.json"):
        write_report(tmp_path)
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(ArtifactError, match="not JSON"):
        write_report(tmp_path)


def test_a_report_needs_no_environment(tmp_path: Path, metrics: dict[str, Any]) -> None:
    write_json(tmp_path / "metrics.json", metrics)
    write_report(tmp_path)
    assert "## Environment" not in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_reports_do_not_import_torch(stage_dir: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from pytest_llmprof.report import write_report;"
        f"write_report(Path({str(stage_dir)!r})); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "n/a"),
        (True, "n/a"),
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
def test_numbers_have_about_three_digits(value: object, shown: str) -> None:
    assert number(value) == shown


def test_memory_energy_and_the_cards_state(metrics: dict[str, Any], environment: dict[str, Any]) -> None:
    plain = render(metrics, environment, [])
    assert "Peak GiB" not in plain
    assert "Share of a page" in plain
    metrics["phase_peaks"] = {"vision": {"allocated_bytes": 3 * 2**30, "reserved_bytes": 4 * 2**30}}
    metrics["energy"] = {"reason": None, "update_s": 0.1, "rounds": [{"energy_j": None, "reason": "too short: 0.2 s"}]}
    environment["gpu_after"] = {**environment["gpu"], "temperature_c": 71}
    environment["gpu_throttled_ms"] = {"power": 12.5, "thermal": 0.0}
    text = render(metrics, environment, [])
    assert re.search(r"^\| vision \| 28.0 \| .* \| 3.00 \|$", text, re.MULTILINE)
    assert "| Energy a page (J) | n/a (too short: 0.2 s) |" in text
    assert "| Card's state before |" in text
    assert re.search(r"^\| Card's state after \| .*71 °C", text, re.MULTILINE)
    assert "| Throttled during the rounds | power 12.5 ms |" in text
    environment["gpu_throttled_ms"]["power"] = 0.0
    metrics["figures"].update(joules_per_page=250.0, joules_per_token=0.25)
    text = render(metrics, environment, [])
    assert "| Energy a page (J) | 250 |" in text
    assert "not at all, by the driver's counters" in text


def test_a_batchs_phases_are_shares_of_the_batch(metrics: dict[str, Any]) -> None:
    metrics["batch_size"] = 8
    metrics["figures"].update(batch_total_ms=31_980.0, batch_tokens_per_s=500.0)
    text = render(metrics, {}, [])
    assert "| Phase | Median ms | IQR | Share of a batch |" in text
    assert "| decode | 15,990 | 160 | 50.0 % |" in text
    assert "| Decode of a batch (tokens/s) | 500 |" in text
    metrics["batch_size"] = 1
    assert "of a batch" not in render(metrics, {}, [])
