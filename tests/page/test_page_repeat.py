"""The command that runs one test again."""

import pytest

from pytest_llmprof.plugin.options import add_options
from pytest_llmprof.report.page.repeat import FLAGS, repeat_command

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
        (["--llmprof-share-gpu", "--llmprof-stage", "one"], " --llmprof-stage one"),
        (["--llmprof-shard", "1/2", "--llmprof-durations=main", "--llmprof-shard-times=t"], ""),
    ],
)
def test_keeps_what_changes_a_test(argv, kept):
    assert repeat_command(argv, TEST) == f"pytest '{TEST}'{kept}"


class Options:
    """Stands in for pytest's parser and its groups: keeps the names of options without a value."""

    def __init__(self):
        self.flags = set()

    def getgroup(self, *_):
        return self

    def addoption(self, *names, **attributes):
        if str(attributes.get("action")).startswith("store_"):
            self.flags.add(names[0])

    def addini(self, *_, **__):
        pass


def test_knows_which_options_have_no_value():
    """Else it would take the word behind one for its value."""
    options = Options()
    add_options(options)
    assert options.flags == FLAGS
