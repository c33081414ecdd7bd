"""`@pytest.mark.llmprof`: this test's own configuration, and whose fault a mistake is."""

from __future__ import annotations

import pytest
from plugin_bench import clean

LEVELS = """
import pytest

pytestmark = pytest.mark.llmprof(overrides=["infer.max_new_tokens=10", "measure.rounds=10", "measure.warmup=10"])

def tokens(config):
    return (config.infer.max_new_tokens, config.measure.rounds, config.measure.warmup)

def test_module(llmprof_config):
    assert tokens(llmprof_config) == (10, 10, 10)

@pytest.mark.llmprof(overrides=["infer.max_new_tokens=5"])
class Base:
    pass

@pytest.mark.llmprof(overrides=["infer.max_new_tokens=20", "measure.rounds=20"])
class TestClass(Base):
    def test_class(self, llmprof_config):
        assert tokens(llmprof_config) == (20, 20, 10)

    @pytest.mark.llmprof(overrides=["infer.max_new_tokens=30"])
    def test_function(self, llmprof_config):
        assert tokens(llmprof_config) == (30, 20, 10)

    @pytest.mark.llmprof(overrides=["infer.max_new_tokens=30"])
    @pytest.mark.parametrize(
        "wanted",
        [
            pytest.param(40, marks=pytest.mark.llmprof(overrides=["infer.max_new_tokens=40"])),
            pytest.param(30),
        ],
    )
    def test_parameter(self, llmprof_config, wanted):
        assert tokens(llmprof_config) == (wanted, 20, 10)

    class TestInner:
        pytestmark = [pytest.mark.llmprof(overrides=["measure.rounds=25"])]

        def test_inner(self, llmprof_config):
            assert tokens(llmprof_config) == (20, 25, 10)

class TestDerived(Base):
    def test_base(self, llmprof_config):
        assert tokens(llmprof_config) == (5, 10, 10)

@pytest.mark.llmprof(overrides=["infer.max_new_tokens=1"])
@pytest.mark.llmprof(overrides=["infer.max_new_tokens=2"])
def test_the_nearest_decorator_wins(llmprof_config):
    assert tokens(llmprof_config) == (2, 10, 10)
"""


def test_module_class_function_parameter(bench):
    bench.ini(tiny=False)
    bench.test(LEVELS)
    bench.passed(count=8)


def test_command_line_over_marker_over_ini_over_config(bench):
    bench.user("config.yaml", "measure: {rounds: 2, warmup: 2}\ninfer: {max_new_tokens: 2, batch_size: 2}\n")
    bench.ini("measure.warmup=3", "infer.max_new_tokens=3", "infer.batch_size=3", tiny=False)
    bench.test(
        """
import pytest
@pytest.mark.llmprof(overrides=["infer.max_new_tokens=4", "infer.batch_size=4"])
def test_it(llmprof_config):
    found = llmprof_config
    assert (found.measure.rounds, found.measure.warmup) == (2, 3)
    assert (found.infer.max_new_tokens, found.infer.batch_size) == (4, 5)
"""
    )
    bench.passed("infer.batch_size=5")


def test_a_marker_chooses_presets(bench):
    bench.user("infer/short.yaml", "defaults: [reference]\nmax_new_tokens: 7\n")
    bench.ini(tiny=False)
    bench.test(
        """
import pytest
@pytest.mark.llmprof(overrides=["infer=short", "output/torch=none", "model.mode=base"])
def test_short(llmprof_config, llmprof_output):
    assert llmprof_config.infer.max_new_tokens == 7
    assert llmprof_config.model.mode == "base"
    assert not llmprof_output.visualization.enable
def test_default(llmprof_config, llmprof_output):
    assert llmprof_config.infer.max_new_tokens == llmprof_config.model.max_new_tokens > 7
    assert llmprof_config.model.mode == "tiny"
    assert llmprof_output.visualization.enable
"""
    )
    bench.passed(count=2)


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        (
            'overrides=["infer.max_new_token=3"]',
            "*infer.max_new_token=3: unknown key*did you mean 'infer.max_new_tokens'*",
        ),
        ('overrides=["infer.max_new_tokens=many"]', "infer.max_new_tokens=many is not allowed*"),
        ('overrides=["infer=fats"]', "infer=fats: unknown preset*"),
        ('overrides=["noequals"]', "override 'noequals'*has no '='*"),
        (
            'overrides=["stages=[direct_inference]"]',
            "stages=*stages are chosen before tests are collected; use --llmprof-stage",
        ),
        ('overrides="measure.rounds=2"', "*overrides='measure.rounds=2' is not a list of texts*"),
        ("overrides=[3]", "*overrides=[[]3] is not a list of texts*"),
        ("overrides=7", "*overrides=7 is not a list of texts*"),
        ('override=["measure.rounds=2"]', "*unknown argument override; allowed: overrides=*"),
        ('"measure.rounds=2"', "*unknown argument 'measure.rounds=2'; allowed: overrides=*"),
    ],
)
def test_a_mistake_fails_its_test_alone(bench, mark, message):
    bench.test(
        f"""
import pytest
@pytest.mark.llmprof({mark})
def test_bad(llmprof):
    raise AssertionError("it ran")
def test_good(llmprof_config):
    pass
"""
    )
    result = bench.run(args=["-v"])
    result.assert_outcomes(errors=1, passed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*ERROR at setup of test_bad*", message])
    assert "it ran" not in result.stdout.str()
    assert "test_it.py::test_bad" in result.stdout.str()
    clean(result)
    (bad,) = [test for test in bench.run_json()["tests"] if "test_bad" in test["id"]]
    assert bad["outcome"] == "failed"
    assert "\n" not in bad["error"]
    assert len(bad["error"]) > 20


def test_where_the_marker_stands_is_named(bench):
    bench.test(
        """
import pytest
class TestIt:
    @pytest.mark.parametrize("x", [1])
    @pytest.mark.llmprof(overrides=["measure.rounds=0"])
    def test_bad(self, llmprof, x):
        pass
"""
    )
    result = bench.run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["measure.rounds=0 is not allowed, set in the marker of test_it.py::TestIt::test_bad; *"]
    )


def test_module_marks_leave_other_tests_alone(bench):
    bench.test(
        """
import pytest
pytestmark = [pytest.mark.llmprof(overrides=["measure.rounds=2"]), pytest.mark.llmprof_gate(ttft_ms="<=9999")]
def test_plain():
    pass
"""
    )
    bench.passed()
    assert not (bench.path / "llmprof-runs").exists()
