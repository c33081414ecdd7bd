"""The command that runs one test again."""

import pytest

from pytest_llmprof.report.page.repeat import repeat_command

TEST = "benchmarks/test_pages.py::test_pages[free-one]"


@pytest.mark.parametrize(
    ("argv", "kept"),
    [
        (["benchmarks", "-x", "-n", "2", "-k", "free"], ""),
        (["--llmprof-stage=one,two"], " --llmprof-stage=one,two"),
        (["--llmprof-override", "infer.prompt=free", "benchmarks"], " --llmprof-override infer.prompt=free"),
        (["--llmprof-run-dir", "out", "--llmprof-save=main", "--llmprof-strict", "tests"], " --llmprof-strict"),
        (["-c", "other.ini", "-o", "a=b", "-pno:cacheprovider"], " -c other.ini -o a=b -pno:cacheprovider"),
        (["--llmprof-override", "infer.prompt=two words"], " --llmprof-override 'infer.prompt=two words'"),
        (["--llmprof-override"], " --llmprof-override"),
    ],
)
def test_keeps_what_changes_a_test(argv, kept):
    assert repeat_command(argv, TEST) == f"pytest '{TEST}'{kept}"
