"""A run with broken files: the page is made all the same, or one line says which file is broken."""

import pytest
from page_runs import answer_of, write_gallery, write_run, write_timeline

from pytest_llmprof.cli import main
from pytest_llmprof.report.page import write_page

STAGE = "test_pages/test_pages-mode0/one_stage"
FILES = [
    "run.json",
    "comparison.json",
    *(
        f"{STAGE}/{name}"
        for name in (
            *("metrics.json", "environment.json", "report.md", "operators.csv", "timeline.json"),
            *("pred/predictions.jsonl", "viz/pages/p0/info.json", "viz/pages/p0/thumbnail.jpg"),
        )
    ),
]
BREAKS = {
    "empty": lambda _: b"",
    "half": lambda data: data[: len(data) // 2],
    "zeros": lambda _: b"\0" * 200,
    "bytes": lambda data: data[:50] + b"\xff\xfe\x80" + data[50:],
    "null": lambda _: b"null",
    "list": lambda _: b"[[[]]]",
    "deep": lambda _: b"[" * 50_000,
    "numbers": lambda data: data.replace(b"1", b"1e999"),
}


@pytest.fixture
def run_dir(tmp_path):
    write_run(tmp_path / "before", tests=1, started="2026-11-23T10:15:00+00:00")
    run = write_run(tmp_path / "run", tests=2)
    write_gallery(run / STAGE, [answer_of("a"), answer_of("b")])
    (run / STAGE / "pred").mkdir()
    (run / STAGE / "pred/predictions.jsonl").write_text('{"page": "c"}\n')
    write_timeline(run / STAGE, 3)
    return run


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("how", BREAKS)
def test_a_broken_file(run_dir, file, how, capsys):
    path = run_dir / file
    data = path.read_bytes() if path.exists() else b'{"schema": 1}'
    path.write_bytes(BREAKS[how](data))
    code, shown = main(["report", str(run_dir)]), capsys.readouterr()
    if code:
        assert code == 4
        assert file in ("run.json", "comparison.json")  # any other's test says so in its place
        assert file in shown.err
        assert shown.err.count("\n") == 1
    else:
        text = (run_dir / "index.html").read_text()
        assert text.count('id="data-test-') == 2
        assert "test_pages[mode1-one_stage]" in text


@pytest.mark.parametrize("file", FILES[2:])
def test_a_directory_in_the_place_of_a_file(run_dir, file):
    (run_dir / file).unlink(missing_ok=True)
    (run_dir / file).mkdir()
    assert write_page(run_dir).read_text().count('id="data-test-') == 2
