"""index.html as a file: its data, its policy, its size, and what a run's broken files do to it."""

import base64
import gzip
import hashlib
import html
import json
import re
from pathlib import Path

import pytest
from page_runs import answer_of, run_record, write_gallery, write_run, write_timeline

from pytest_llmprof.cli import main
from pytest_llmprof.errors import ArtifactError
from pytest_llmprof.records.catalogue import Declaration
from pytest_llmprof.records.files import write_json, write_text
from pytest_llmprof.records.run import TestRecord
from pytest_llmprof.records.stage import StageRecords
from pytest_llmprof.report.findings import warnings
from pytest_llmprof.report.page import collect, write_page
from pytest_llmprof.report.page import page as page_module

LARGEST = 300_000
"""Bytes of the page without data."""


def blocks(page):
    """The page's data by name."""
    block = r'<script type="application/json" id="data-([\w-]+)">(.*?)</script>'
    return {name: unpacked(json.loads(text)) for name, text in re.findall(block, page.read_text(), re.DOTALL)}


def unpacked(value):
    """A block that may be packed."""
    return json.loads(gzip.decompress(base64.b64decode(value))) if isinstance(value, str) else value


def test_the_overview_has_every_test(tmp_path):
    data = blocks(write_page(write_run(tmp_path, tests=3, failed=1)))
    overview = data["overview"]
    assert [row["outcome"] for row in overview["rows"]] == ["passed", "passed", "failed"]
    assert overview["rows"][2]["failed_gates"] == ["cer"]
    names = [column["name"] for column in overview["columns"]]
    assert "joules_per_page" not in names  # no test has one
    assert [row["values"][names.index("ttft_ms")] for row in overview["rows"]] == [60.0, 120.0, 180.0]
    assert [note["tests"] for note in overview["findings"]] == [[0, 1, 2]]
    assert len([name for name in data if name.startswith("test-")]) == 3


def test_gates_stand_as_the_failure_names_them(tmp_path):
    """So that the page does not say again what the failure has said."""
    path = write_run(tmp_path, tests=1)
    (file,) = path.glob("*/*/*/metrics.json")
    metrics = json.loads(file.read_text())
    metrics["gates"] += [
        {**metrics["gates"][0], "name": name, "outcome": "not measured", "reason": "no baseline"} for name in "ab"
    ]
    file.write_text(json.dumps(metrics))
    gates = blocks(write_page(path))["test-0"]["gates"]
    assert [(gate["outcome"], gate["text"]) for gate in gates] == [
        ("passed", "cer is 0.01, limit <=0.05"), ("not measured", "a <=0.05, b <=0.05 are not measured: no baseline")
    ]  # fmt: skip


def test_a_test_has_its_samples_and_its_stages_own_section(tmp_path):
    data = blocks(write_page(write_run(tmp_path, tests=1, pages=3, rounds=2)))["test-0"]
    assert data["pages"] == ["page-000", "page-001", "page-002"]
    assert data["samples"]["page"] == [0, 1, 2, 0, 1, 2]
    assert data["samples"]["round"] == [0, 0, 0, 1, 1, 1]
    assert set(data["samples"]["phases"]) == {"preprocess", "vision", "sam", "clip", "prefill", "decode"}
    assert [section["title"] for section in data["sections"]] == ["Its own section"]
    assert 'src="test_pages/test_pages-mode0/one_stage/roofline.svg"' in data["sections"][0]["html"]
    assert len(data["findings_html"]) == 2
    assert data["tables"][0]["columns"] == ["name", "kind", "phase", "count", "total_ms"]
    assert data["tables"][0]["total"] == 30
    assert "pytest 'benchmarks/test_pages.py::test_pages[mode0-one_stage]'" in data["repeat"]


def test_what_was_measured_stands_without_the_outcome_beside_it(tmp_path):
    """It is made of the records, so a test whose report the page has no room for has it, too."""
    run = write_run(tmp_path, tests=2, failed=1)
    next(run.glob("*/*/*/report.md")).unlink()
    data = blocks(write_page(run))
    texts = [data[f"test-{index}"]["summary_html"] for index in range(2)]
    assert texts == [
        f"3 pages in 2 rounds. CER {cer}. Gates: 1 {gate}." for cer, gate in (("0.0100", "passed"), ("0.200", "failed"))
    ]


def test_a_contended_host_is_told_once_for_all_tests(tmp_path):
    run = write_run(tmp_path, tests=4)
    for index, path in enumerate(sorted(run.glob("test_pages/*/one_stage/metrics.json"))):
        metrics = json.loads(path.read_text())
        for host in metrics["round_host"]:
            host.update(contended=True, waited_share=0.1 * (1 + index), load=2.0 + index)
        metrics["spread"]["total_ms"]["iqr"] = 0.2 * metrics["figures"]["total_ms"] * (1 + index)
        path.write_text(json.dumps(metrics))
        notes = warnings(StageRecords.read(path.parent).metrics, None)
        report = ["# a", "", "**OK.** 3 pages.", "", *(f"> **Note:** {note}" for note in notes)]
        write_text(path.with_name("report.md"), "\n".join(report))
    data = blocks(write_page(run))
    told = data["overview"]["warnings"]
    assert [note["tests"] for note in told] == [[0, 1, 2, 3]] * 3
    assert told[0]["html"] == "The host was contended in 2 of 2 rounds: on a quiet machine the same work is faster."
    assert "by more than 10.0 % from" in told[2]["html"]
    assert "up to 10.0 % of a round, load 2.00" in data["test-0"]["warnings_html"][0]


def test_findings_that_differ_in_numbers_are_told_once_for_all_tests(tmp_path):
    """A name is no number: that of a kernel, of a layer, a version, or the file of a link."""
    texts = [f"**In decode it is busy {busy} %**. A token takes {many} launches." for busy, many in
             (("9.5", "1,203"), ("40.1", "987"), ("15.0", "1,203"))]  # fmt: skip
    names = ["`gemm_64 2`", "layer2", "torch 2.13.0", "[all](a2.csv)"]
    texts += [f"**{name.replace('2', digit)} takes {share} %**." for name in names for digit, share in ("28", "37")]
    run = write_run(tmp_path, tests=len(texts))
    for index, text in enumerate(texts):
        path = run / f"test_pages/test_pages-mode{index}/one_stage/report.md"
        write_text(path, f"# a\n\n## What to look at\n\n1. {text}\n2. Another.\n")
    data = blocks(write_page(run))
    first, *others = data["overview"]["findings"]
    assert first["html"] == "<strong>In decode it is busy 9.5 to 40.1 %</strong>. A token takes 987 to 1,203 launches."
    assert first["tests"] == [0, 1, 2]
    assert "busy 9.5 %" in data["test-0"]["findings_html"][0]
    assert [note["tests"] for note in others] == [[index] for index in range(3, len(texts))]
    assert others[-1]["html"].endswith("takes 7 %</strong>.")


def test_the_metrics_are_those_of_the_report(tmp_path):
    run = write_run(tmp_path, tests=1)
    path = run / "test_pages/test_pages-mode0/one_stage/metrics.json"
    metrics = json.loads(path.read_text())
    metrics["figures"] |= {"batch_total_ms": 1000.0, "total_ms": 134_562.0}
    for size in (1, 2):
        path.write_text(json.dumps({**metrics, "batch_size": size}))
        rows = {row["title"]: row["value"] for row in blocks(write_page(run))["test-0"]["metrics"]}
        assert rows["Total a page (ms)"] == 134_562.0
        assert ("Total a batch (ms)" in rows) is (size == 2)


def test_a_callable_has_calls_and_no_pages_to_take_a_minimum_over(tmp_path):
    write_run(tmp_path, tests=2)
    for index, kind in enumerate(("callable", "pages")):
        path = tmp_path / f"test_pages/test_pages-mode{index}/one_stage/metrics.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"kind": kind, "energy": {}}))
    run = json.loads((tmp_path / "run.json").read_text())
    run["tests"][0]["kind"] = "callable"
    write_json(tmp_path / "run.json", run)
    data = blocks(write_page(tmp_path))
    column = next(one for one in data["overview"]["columns"] if one["name"] == "total_ms")
    assert (column["short"], column["title_of_call"]) == ("page/call ms", "Total a call (ms)")
    call, page = ({one["title"]: one for one in data[f"test-{index}"]["metrics"]} for index in (0, 1))
    assert (call["Total a call (ms)"]["iqr"], call["Total a call (ms)"]["max"]) == (12.0, None)
    assert page["Total a page (ms)"]["max"] == 7000.0
    assert "over pages" in data["test-1"]["metrics_note"]
    assert "over pages" not in data["test-0"]["metrics_note"]


def test_a_strangers_metric_is_a_column(tmp_path):
    write_run(tmp_path, tests=1, metrics=[Declaration("sparkle", label="Sparkle", shown=("terminal",))])
    path = tmp_path / "test_pages/test_pages-mode0/one_stage/metrics.json"
    metrics = json.loads(path.read_text())
    metrics["figures"]["sparkle"] = 4.5
    path.write_text(json.dumps(metrics))
    overview = blocks(write_page(tmp_path))["overview"]
    assert [column["title"] for column in overview["columns"]] == ["Sparkle"]
    assert overview["rows"][0]["values"] == [4.5]


def test_data_cannot_end_its_block(tmp_path):
    bad = "</script><script>alert(1)</script><!-- \u2028 &amp; \udcff"
    write_json(tmp_path / "run.json", run_record([TestRecord(f"t.py::{bad}", "one", None, "failed", None, bad)]))
    page = write_page(tmp_path)
    text = page.read_text()
    assert "alert(1)</script>" not in text
    assert text.count("<script>") == 1
    assert blocks(page)["overview"]["rows"][0]["error"] == bad.replace("\u2028", "<U+2028>").replace("\udcff", "\ufffd")


def test_the_policy_allows_exactly_what_is_in_the_page(tmp_path):
    text = write_page(write_run(tmp_path)).read_text()
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1])
    for name in ("script", "style"):
        content = re.search(rf"<{name}>(.*?)</{name}>", text, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert not re.search(r"\son\w+=|style=", text.partition("<style>")[0])


def test_the_page_is_small_without_data(tmp_path):
    write_json(tmp_path / "run.json", run_record([]))
    assert write_page(tmp_path).stat().st_size < LARGEST


def test_broken_files_of_one_test_leave_the_others(tmp_path):
    write_run(tmp_path, tests=2)
    (tmp_path / "test_pages/test_pages-mode0/one_stage/metrics.json").write_text("{")
    data = blocks(write_page(tmp_path))
    assert "metrics.json is not JSON" in data["test-0"]["problem"]
    assert "problem" not in data["test-1"]


def test_a_run_without_a_readable_run_json_is_refused(tmp_path):
    write_text(tmp_path / "run.json", '{"schema": 99}')
    with pytest.raises(ArtifactError, match="schema 99"):
        write_page(tmp_path)


def test_the_command_makes_the_page_elsewhere(tmp_path, capsys):
    write_run(tmp_path / "a run")
    assert main(["report", str(tmp_path / "a run"), "-o", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "page.html")
    assert blocks(tmp_path / "page.html")["overview"]["base"] == "a%20run/"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["missing"], "there is no run at missing: name a run directory, which has a run.json"),
        (["run", "-o", "run"], "--output run is a directory: name a file in it"),
        (["run", "-o", "no/page.html"], "--output no/page.html cannot be written: its directory is missing"),
        (["run", "--baseline", "mian"], "mian"),
    ],
)
def test_bad_input_gives_one_line(tmp_path, monkeypatch, capsys, arguments, error):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run")
    assert main(["report", *arguments]) == 4
    shown = capsys.readouterr().err
    assert error in shown
    assert shown.count("\n") == 1


def test_the_command_compares_with_a_baseline(tmp_path):
    write_run(tmp_path / "before", started="2026-11-23T10:15:00+00:00")
    write_run(tmp_path / "after")
    assert main(["report", str(tmp_path / "after"), "--baseline", str(tmp_path / "before")]) == 0
    data = blocks(tmp_path / "after/index.html")
    assert data["overview"]["compared"] is True
    assert {row["metric"] for row in data["comparison"]["rows"]} >= {"total_ms", "cer"}


def test_answers_and_timelines_are_blocks_of_their_own(tmp_path):
    write_run(tmp_path, tests=2)
    stage_dir = tmp_path / "test_pages/test_pages-mode1/one_stage"
    write_gallery(stage_dir, [answer_of(f"page-{number}") for number in range(300)])
    write_timeline(stage_dir, 5000)
    data = blocks(write_page(tmp_path))
    assert [row.get("gallery", 0) for row in data["overview"]["rows"]] == [0, 300]
    assert len(data["answers-1"]) == 300
    assert sum(data["timeline-1"]["lanes"][1]["dur"]) == 5000 * 2000
    assert data["test-1"]["timeline"] == "here"
    assert not {"answers-0", "timeline-0"} & set(data)


def test_timelines_beyond_the_limit_stay_in_their_files(tmp_path, monkeypatch):
    monkeypatch.setattr(collect, "TIMELINE_BYTES", 10_000)
    write_run(tmp_path, tests=2)
    for mode, events in ((0, 5000), (1, 50)):
        write_timeline(tmp_path / f"test_pages/test_pages-mode{mode}/one_stage", events)
    data = blocks(write_page(tmp_path))
    assert (data["test-0"]["timeline"], data["test-1"]["timeline"]) == ("file", "here")
    assert "timeline-0" not in data


def test_a_broken_timeline_is_told(tmp_path):
    write_run(tmp_path, tests=1)
    (tmp_path / "test_pages/test_pages-mode0/one_stage/timeline.json").write_text('{"schema": 9}')
    assert "timeline.json has schema 9" in blocks(write_page(tmp_path))["test-0"]["problem"]


def test_the_baselines_answers_that_differ_are_there(tmp_path):
    for name, day, text in (("before", 23, "Old"), ("after", 24, "New")):
        write_run(tmp_path / name, tests=1, started=f"2026-11-{day}T10:15:00+00:00")
        answers = [answer_of("same"), answer_of("other", text_raw=text)]
        write_gallery(tmp_path / name / "test_pages/test_pages-mode0/one_stage", answers)
    assert main(["report", str(tmp_path / "after"), "--baseline", str(tmp_path / "before")]) == 0
    data = blocks(tmp_path / "after/index.html")
    assert [(answer["page"], answer["raw"]) for answer in data["before-0"]] == [("other", "Old")]


def test_signatures_of_kernels_are_shortened(tmp_path):
    write_run(tmp_path, tests=1)
    name = "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_mul<float> >(int)"
    path = tmp_path / "test_pages/test_pages-mode0/one_stage/kernels.csv"
    path.write_text(f'name,count\n"{name}",3\nplain,1\n')
    kernels, operators = blocks(write_page(tmp_path))["test-0"]["tables"]
    assert kernels["rows"][0] == [name, "3"]
    assert kernels["short"][0].startswith("vectorized_elementwise_kernel")
    assert kernels["numeric"] == [False, True]
    assert operators.get("short", []) == []


def test_own_assets_are_readable_and_all_in_the_page(tmp_path):
    text = write_page(write_run(tmp_path)).read_text()
    assets = Path(page_module.__file__).parent / "assets"
    own = [path for path in assets.rglob("*") if path.suffix in (".js", ".css") and path.parent.name != "uplot"]
    assert len(own) > 8
    for path in own:
        content = path.read_text()
        assert content.strip() in text, path.name
        assert max(map(len, content.splitlines())) <= 120, path.name
    assert (assets / "uplot/LICENSE").read_text().strip() in text
