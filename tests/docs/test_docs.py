"""What the documentation names exists, and what exists is documented."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from pytest_llmprof.config.compose import Composer, ConfigSources
from pytest_llmprof.config.registry import Registry
from pytest_llmprof.config.schema import AUTO
from pytest_llmprof.config.tree import find, is_block, known_paths, root_block
from pytest_llmprof.datasets import builtin
from pytest_llmprof.models import packaged_models
from pytest_llmprof.plugin import options
from pytest_llmprof.records.catalogue import BUILTIN
from pytest_llmprof.records.predictions import Prediction
from pytest_llmprof.stages import packaged_stages

ROOT = Path(__file__).resolve().parents[2]
DOCS = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
CONFIGURATION = ROOT / "docs" / "configuration.md"
REGISTRY = Registry.of(packaged_models(), packaged_stages(), builtin())
TREE = root_block(REGISTRY)
STAGES = ("torch_profiler", "direct_inference")
ALL = pytest.mark.parametrize("document", DOCS, ids=lambda path: path.name)

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NAMED_FENCE = re.compile(r"^\*\*`([^`]+)`\*\*\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def composer(tmp_path: Path, *cli: str, config_dir: Path | None = None) -> Composer:
    sources = ConfigSources(invocation_dir=tmp_path, rootdir=tmp_path, cli_overrides=cli, config_dir=config_dir)
    return Composer(sources, REGISTRY)


def leaves() -> set[str]:
    return {path for path in known_paths(TREE) if not is_block(find(TREE, path))}


def rows(text: str, columns: int) -> Iterator[list[str]]:
    """The cells of each table row with *columns* cells, its heading and rule left out."""
    for line in _FENCE.sub("", text).splitlines():
        if line.startswith("|") and not line.startswith("|:"):
            cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if len(cells) == columns and (cells[0].startswith("`") or not cells[0]):
                yield cells


def ticked(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def documented_keys() -> dict[str, tuple[str, str]]:
    """Key -> (type, default) of the tables in configuration.md, `<stage>` replaced by each stage."""
    found = {}
    for key, kind, default, _ in rows(section(CONFIGURATION, "Keys"), 4):
        for stage in STAGES if "<stage>" in key else ("",):
            found[key.strip("`").replace("<stage>", stage)] = (kind, default)
    return found


def section(document: Path, heading: str) -> str:
    """The text from a heading of the second level to the next one."""
    _, _, rest = document.read_text(encoding="utf-8").partition(f"\n## {heading}\n")
    assert rest, f"{document.name} has no section {heading!r}"
    return re.split(r"^## ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def slug(heading: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def test_every_key_is_documented_and_every_documented_key_exists():
    assert set(documented_keys()) == leaves()


def test_documented_defaults_are_the_defaults(tmp_path):
    shown = yaml.safe_load(composer(tmp_path).show())
    for key, (_, default) in documented_keys().items():
        if key.startswith("llmprof."):
            assert default == "none"
            continue
        if key == "infer.engine":  # shown as the engine that it becomes here
            assert default.strip("`") == AUTO
            continue
        value = shown
        for part in key.split("."):
            value = value[part]
        assert yaml.safe_load(default.strip("`")) == value, key


@ALL
def test_overrides_name_keys_presets_or_legacy_keys(document, tmp_path):
    presets = composer(tmp_path).presets
    text = document.read_text(encoding="utf-8")
    given = re.findall(r"""--llmprof-override[ =]['"]?([^\s='"`]+)=""", text)
    given += re.findall(r"`(pipeline\.[^\s`=]+)=", text)
    for key in given:
        if key in ("KEY", "GROUP", "infer.max_new_token") or key.startswith("pipeline.cold"):
            continue  # words for any key, the misspelled one of an error, the example's own stage
        if key in ("experiment",):
            continue  # the group that configuration.md's recipe makes
        if key.rpartition(".")[0] in ("gate.limits", "gate.slower", "gate.worse"):
            continue  # mappings, whose keys are metrics
        group = key.partition("@")[0]
        assert key.replace("<stage>", STAGES[0]) in leaves() | set(REGISTRY.legacy_keys) or presets.options(group), key


def test_keys_of_the_plan_are_shown():
    everywhere = "".join(path.read_text(encoding="utf-8") for path in DOCS)
    stage = "pipeline.torch_profiler.output"
    for override in (
        f"{stage}.prediction.enable=true",
        f"{stage}.prediction.save_dir=pred",
        f"{stage}.extra.deepseek_ocr.prediction.strip_special_tokens=true",
        f"{stage}.extra.deepseek_ocr.visualization.max_images=8",
    ):
        assert override in everywhere


@ALL
def test_options_exist(document, pytestconfig):
    parser = pytestconfig._parser
    known = {name for name in parser.optparser._option_string_actions if name.startswith("--llmprof-")}
    known -= {options.FROZEN, options.DOCTOR, options.SHARD_TIMES}
    named = set(re.findall(r"--llmprof-[a-z-]+", document.read_text(encoding="utf-8")))
    assert named <= known
    if document == CONFIGURATION:
        assert named == known
        for option in known:
            ini = option.removeprefix("--").replace("-", "_")
            if ini not in parser._inidict:
                continue
            assert f"`{ini}`" in section(CONFIGURATION, "Options and ini values")


def test_every_preset_is_named():
    table: dict[str, set[str]] = {}
    group = ""
    for cells in rows(section(CONFIGURATION, "Presets"), 3):
        group = cells[0].strip("`") or group
        table.setdefault(group, set()).update(ticked(cells[1]))
    there: dict[str, set[str]] = {}
    for path in (ROOT / "conf").rglob("*.yaml"):
        if path.parent != ROOT / "conf":
            there.setdefault(path.parent.relative_to(ROOT / "conf").as_posix(), set()).add(path.stem)
    assert table == there


def test_legacy_table():
    table = {}
    for cells in rows(section(ROOT / "docs" / "migration.md", "2. Replace them"), 2):
        table.update(dict.fromkeys(ticked(cells[0]), cells[1].strip("`")))
    assert table == REGISTRY.legacy_keys


def test_before_and_after_a_migration_are_the_same(tmp_path):
    text = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
    found = []
    for number, (language, body) in enumerate(_FENCE.findall(text)):
        if language == "yaml":
            (tmp_path / str(number)).mkdir()
            (tmp_path / str(number) / "config.yaml").write_text(body, encoding="utf-8")
            found.append(composer(tmp_path, config_dir=tmp_path / str(number)).session())
        elif language == "bash" and "--llmprof-show-config" not in body:
            found += [composer(tmp_path, *re.findall(r"--llmprof-override (\S+)", line)).session()
                      for line in body.splitlines()]
    assert len(found) == 4
    assert all(one.pipeline == found[0].pipeline for one in found)
    assert found[0].pipeline != composer(tmp_path).session().pipeline


def test_quoting_table(tmp_path):
    checked = 0
    for cells in rows(section(CONFIGURATION, "Overrides and their quoting"), 2):
        for override in ticked(cells[0]):
            shown = yaml.safe_load(composer(tmp_path, override).show())
            if len(values := ticked(cells[1])) != 1 or cells[0].count("`") != 2:
                continue  # two keys at once, or "as ...": that it composes is enough
            block, _, name = override.partition("=")[0].partition(".")
            assert shown[block][name] == json.loads(values[0]), override
            checked += 1
    assert checked >= 10


RECIPES = re.split(r"^### ", section(CONFIGURATION, "Your own configuration tree"), flags=re.MULTILINE)[1:]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda text: text.splitlines()[0])
def test_configuration_tree_recipes(recipe, tmp_path):
    files = _NAMED_FENCE.findall(recipe)
    assert files
    for name, body in files:
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(body, encoding="utf-8")
    given = re.findall(r"--llmprof-override ([^\s`]+)", recipe)
    settings = composer(tmp_path, *given, config_dir=tmp_path / "mine").session()
    assert settings != composer(tmp_path).session()


def test_documents_name_every_figure_and_field():
    measures = (ROOT / "docs" / "measures.md").read_text(encoding="utf-8")
    for metric in (*BUILTIN, *(metric for stage in packaged_stages() for metric in stage.metrics)):
        name = f"quality.{metric.name}" if metric.section == "quality" else metric.name
        assert f"`{name}`" in measures, name
    predictions = section(ROOT / "docs" / "outputs.md", "predictions.jsonl")
    for field in Prediction.__struct_fields__:
        assert f"`{field}`" in predictions, field


@ALL
def test_relative_links_resolve(document):
    text = _FENCE.sub("", document.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        path = (document.parent / file).resolve() if file else document
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", _FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, target


@ALL
def test_fences_can_be_read(document):
    """Python, YAML and JSON blocks are what they say."""
    for language, body in _FENCE.findall(document.read_text(encoding="utf-8")):
        if language == "python":
            ast.parse(body)
        elif language in ("yaml", "json"):
            yaml.safe_load(body)


def test_the_plugin_of_extending_md_runs(pytester, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name, body in _NAMED_FENCE.findall((ROOT / "docs" / "extending.md").read_text(encoding="utf-8")):
        path = pytester.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(body, encoding="utf-8")
    result = pytester.runpytest_subprocess(
        "--llmprof-stage=cold,torch_profiler", "--llmprof-override", "pipeline.cold.limit_ms=500"
    )
    result.assert_outcomes(passed=2)
    test = pytester.path / "llmprof-runs" / "latest" / "test_ink" / "test_ink"
    cold = json.loads((test / "cold" / "metrics.json").read_text())
    assert cold["figures"]["first_page_ms"] == json.loads((test / "cold" / "cold.json").read_text())["first_page_ms"]
    assert 0 < cold["figures"]["first_page_share"] < 1
    assert cold["cold"] == {"page": "day", "slow": False}
    report = (test / "cold" / "report.md").read_text()
    for text in ("| First page (ms) | ", "| Words a page | 3", "## Cold start", "| day | ", "(cold.json): the first"):
        assert text in report, text
    result.stdout.fnmatch_lines(["*first ms*"])
    metrics = json.loads((test / "torch_profiler" / "metrics.json").read_text())
    assert metrics["quality"]["cer"] == 0.0
    assert metrics["model"]["name"] == "ink"
    text = (ROOT / "docs" / "outputs.md").read_text(encoding="utf-8")
    measures = (ROOT / "docs" / "measures.md").read_text(encoding="utf-8")
    for key in (*metrics, *metrics["samples"][0], *metrics["fingerprint"], *metrics["model"]):
        assert f"`{key}`" in text, key
    phase = next(iter(metrics["profile"]["phases"].values()))
    for key in (*metrics["profile"], *metrics["spread"]["round_s"], *phase):
        assert f"`{key}`" in measures, key
    run = json.loads((pytester.path / "llmprof-runs" / "latest" / "run.json").read_text())
    for key in (*run, *run["tests"][0]):
        assert f"`{key}`" in section(ROOT / "docs" / "outputs.md", "run.json"), key
    environment = json.loads((test / "cold" / "environment.json").read_text())
    assert set(environment) <= set(ticked(section(ROOT / "docs" / "outputs.md", "Other files")))
    bad = pytester.runpytest_subprocess("--llmprof-stage=cold", "--llmprof-override", "pipeline.cold.limit_ms=0")
    assert bad.ret == pytest.ExitCode.USAGE_ERROR
    bad.stderr.fnmatch_lines(["ERROR: pipeline.cold.limit_ms=0.0 is not allowed*a number > 0"])
