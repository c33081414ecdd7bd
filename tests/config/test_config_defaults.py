"""The packaged tree: what it composes to, and where it is found."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import yaml

from pytest_llmprof.config import schema
from pytest_llmprof.config.paths import conf_dir
from pytest_llmprof.stages.ncu.options import NcuOptions
from pytest_llmprof.stages.nsys.options import NsysOptions
from pytest_llmprof.stages.static_analysis.options import StaticAnalysisOptions
from pytest_llmprof.stages.torch_profiler.options import TorchProfilerOptions

GOLDEN = Path(__file__).parent / "default.yaml"
CONF = conf_dir()


def test_default_configuration_is_the_golden_file(bench):
    settings = bench.composer().for_test((), "", "mod/test_a", "torch_profiler")
    assert settings.yaml == GOLDEN.read_text(encoding="utf-8")


def test_defaults_of_presets_are_those_of_the_schema(bench):
    settings = bench.settings()
    assert settings.measure == schema.MeasureSettings()
    assert settings.dataset == schema.DatasetSettings()
    for name in ("torch_profiler", "direct_inference"):
        assert settings.pipeline[name].output == schema.OutputSettings(extra={"deepseek_ocr": schema.OutputExtra()})
    assert settings.pipeline["static_analysis"] == schema.StageSettings(options=StaticAnalysisOptions())
    for name, options in (("nsys", NsysOptions()), ("ncu", NcuOptions())):
        assert settings.pipeline[name] == schema.StageSettings(options=options)
    assert settings.pipeline["torch_profiler"] == dataclasses.replace(
        schema.StageSettings(options=TorchProfilerOptions()),
        output=settings.pipeline["torch_profiler"].output,
    )
    assert settings.current is settings.pipeline["torch_profiler"]
    reference = bench.settings("model=deepseek_ocr_random", "infer=reference")
    assert reference.infer == schema.InferSettings(max_new_tokens=256, engine="reference")
    packaged = yaml.safe_load((CONF / "infer" / "auto.yaml").read_text(encoding="utf-8"))
    assert packaged["engine"] == schema.InferSettings().engine == schema.AUTO
    assert reference.model == schema.ModelSettings(weights="random", max_new_tokens=256)


def test_tiny_model_generates_little_unless_a_key_or_preset_gives_a_number(bench):
    assert bench.settings().infer.max_new_tokens == 512
    assert bench.settings().model.size == "tiny"
    assert bench.settings("infer=reference").infer.max_new_tokens == 512
    assert bench.settings("infer.max_new_tokens=1000").infer.max_new_tokens == 1000
    assert bench.settings("model=deepseek_ocr_random").infer.max_new_tokens == 256
    bench.write("infer/short.yaml", "defaults: [reference]\nmax_new_tokens: 64\n")
    assert bench.settings("infer=short").infer.max_new_tokens == 64
    assert bench.settings("infer=short").infer.no_repeat_ngram_size == 35


def test_defaults_list_has_the_mounts_by_their_exact_names():
    defaults = yaml.safe_load((CONF / "config.yaml").read_text(encoding="utf-8"))["defaults"]
    assert defaults[-1] == "_self_"
    for stage in ("torch_profiler", "direct_inference"):
        mount = f"pipeline.{stage}.output"
        assert {f"output/torch@{mount}": "default"} in defaults
        assert {f"model/deepseek_ocr/output/torch@{mount}.extra.deepseek_ocr": "default"} in defaults


def test_plain_hydra_composes_the_tree():
    code = textwrap.dedent(
        f"""
        from hydra import compose, initialize_config_dir
        with initialize_config_dir({str(CONF)!r}, version_base="1.3"):
            config = compose("config", ["output/torch@pipeline.torch_profiler.output=full"])
        assert config.pipeline.torch_profiler.output.prediction.enable is True
        assert config.pipeline.torch_profiler.output.extra.deepseek_ocr.visualization.max_images == 16
        assert config.infer.max_new_tokens == 512
        """
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONF)))
def test_each_key_has_a_comment_with_its_default(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    is_root = path.name == "config.yaml"
    for number, line in enumerate(lines):
        key = re.match(r"( *)([a-z_]+): *(.*)", line)
        if not key or (not key[3] and not key[1]) or (is_root and key[2] in ("defaults", "llmprof")):
            continue
        comment = []
        for above in reversed(lines[:number]):
            if not above.lstrip().startswith("#"):
                break
            comment.insert(0, above.strip())
        text = " ".join(comment)
        assert text, f"{path.name}: {key[2]} has no comment"
        assert not key[3] or "efault" in text, f"{path.name}: {key[2]}'s comment names no default"


def test_presets_do_not_repeat_in_the_root_body():
    body = yaml.safe_load((CONF / "config.yaml").read_text(encoding="utf-8"))
    assert set(body) == {"defaults", "stages", "measure", "gate", "llmprof"}


def test_checkout_tree_is_preferred_and_a_foreign_conf_is_not(tmp_path):
    package = tmp_path / "pytest_llmprof"
    (package / "conf").mkdir(parents=True)
    (package / "conf" / "config.yaml").write_text("")
    assert conf_dir(package) == package / "conf"
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").write_text("")
    assert conf_dir(package) == package / "conf"
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "somebody-elses"\n')
    assert conf_dir(package) == package / "conf"
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "pytest-llmprof"\n')
    assert conf_dir(package) == tmp_path / "conf"


def test_test_and_stage_are_nodes_set_for_each_test(bench):
    composer = bench.composer(
        "pipeline.torch_profiler.output.prediction.save_dir=/out/${llmprof.test}/${llmprof.stage}"
    )
    first = composer.for_test((), "", "mod/test_a", "torch_profiler")
    second = composer.for_test((), "", "mod/test_b", "direct_inference")
    assert first.pipeline["torch_profiler"].output.prediction.save_dir == "/out/mod/test_a/torch_profiler"
    assert second.pipeline["torch_profiler"].output.prediction.save_dir == "/out/mod/test_b/direct_inference"
    assert (second.test, second.stage) == ("mod/test_b", "direct_inference")
    assert "save_dir: /out/${llmprof.test}/${llmprof.stage}" in first.yaml


def test_digest_leaves_out_the_test(bench):
    composer = bench.composer()
    one = composer.for_test((), "", "mod/test_a", "torch_profiler")
    other = composer.for_test((), "", "mod/test_b", "direct_inference")
    assert one.digest == other.digest
    assert one.yaml != other.yaml
    assert (
        composer.for_test(("measure.rounds=4",), "x:1", "mod/test_a", "torch_profiler").digest != one.digest
    )


def test_saved_configuration_composes_to_itself(bench):
    first = bench.settings(
        "output/torch=full", "infer.prompt='say: \"a\", # {x}'", "model.revision=1e3", "measure.rounds=7"
    )
    bench.write("config.yaml", first.yaml)
    again = bench.settings()
    assert again.yaml == first.yaml
    assert again.digest == first.digest
    assert again.infer.prompt == 'say: "a", # {x}'
    assert again.model.revision == "1e3"


def test_presets_are_composed_once_for_many_tests(bench, monkeypatch):
    from pytest_llmprof.config import hydra_compose

    calls = []
    real = hydra_compose.compose
    monkeypatch.setattr(hydra_compose, "compose", lambda *given, **kinds: calls.append(given) or real(*given, **kinds))
    composer = bench.composer()
    for number in range(20):
        composer.for_test((f"measure.rounds={number + 1}",), f"x:{number}", f"t{number}", "torch_profiler")
    assert len(calls) == 1
    composer.for_test(("model=deepseek_ocr_random",), "x:1", "t", "torch_profiler")
    composer.for_test(("model=deepseek_ocr_random", "measure.rounds=2"), "x:1", "t", "torch_profiler")
    assert len(calls) == 2


def test_composing_leaves_the_users_hydra_alone(bench, tmp_path):
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "config.yaml").write_text("mine: 1\n")
    code = textwrap.dedent(
        f"""
        from hydra import compose, initialize_config_dir
        from hydra.core.config_store import ConfigStore
        from hydra.core.global_hydra import GlobalHydra
        from hydra.version import getbase
        from pathlib import Path
        from pytest_llmprof.config.compose import Composer, ConfigSources
        from pytest_llmprof.config.registry import Registry
        from pytest_llmprof.stages.torch_profiler.stage import plugin as torch_profiler
        from pytest_llmprof.datasets import builtin
        from pytest_llmprof.models.deepseek_ocr import plugin

        def ours():
            sources = ConfigSources(invocation_dir=Path("."), rootdir=Path("."))
            registry = Registry.of([plugin()], [torch_profiler()], builtin())
            return Composer(sources, registry).session().stages == ("torch_profiler",)

        with initialize_config_dir({str(tmp_path / "app")!r}, version_base="1.1"):
            assert ours()
            assert GlobalHydra.instance().is_initialized()
            assert str(getbase()) == "1.1"
            assert compose("config").mine == 1
        assert not GlobalHydra.instance().is_initialized()
        assert ours()
        assert not GlobalHydra.instance().is_initialized()
        assert not [name for name in ConfigStore.instance().repo if "llmprof" in name]
        with initialize_config_dir({str(tmp_path / "app")!r}, version_base=None):
            assert compose("config").mine == 1
        """
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_threads_can_compose_at_once(bench):
    found: list[object] = []

    def work(number: int) -> None:
        try:
            preset = ("deepseek_ocr_tiny", "deepseek_ocr_random")[number % 2]
            found.append(bench.settings(f"model={preset}", f"measure.rounds={number + 1}").measure.rounds)
        except Exception as error:  # noqa: BLE001 - a thread's error is compared below
            found.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found, key=str) == [1, 2, 3, 4, 5, 6]


def test_light_at_load():
    code = (
        "import sys, pytest_llmprof.config.compose, pytest_llmprof.stages;"
        "assert not {'torch', 'transformers', 'hydra', 'omegaconf', 'pytest', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONWARNINGS": "error"})
