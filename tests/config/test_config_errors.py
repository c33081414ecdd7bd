"""What is refused, with the line that a user gets: the path, the value, what is allowed, where it was set."""

from __future__ import annotations

import pytest

MAX_IMAGES = "pipeline.torch_profiler.output.extra.deepseek_ocr.visualization.max_images"
MOUNT = "output/torch@pipeline.torch_profiler.output"
WIDTH = "pipeline.torch_profiler.output.extra.deepseek_ocr.visualization.thumbnail_width"


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("a=b,c", ["'a=b,c'", "\"a='b,c'\"", '"a=[b,c]"']),
        ("k=x=y", ["'k=x=y'", "\"k='x=y'\""]),
        ("infer.prompt=<image>", ["\"infer.prompt='<image>'\""]),
        ("infer.prompt=it's", ["\"infer.prompt='it\\\\'s'\""]),
        ("infer.prompt=$(x)", ["\"infer.prompt='\\$(x)'\""]),
        ("noequals", ["'noequals'", "no '='", '"noequals=VALUE"']),
        ("", ["empty override", "KEY=VALUE"]),
        ("  ", ["empty override"]),
        ("=x", ["'' is no key"]),
        ("a b=c", ["'a b' is no key"]),
        ("measure.rounds=range(1,3)", ["several values"]),
        ("~infer.batch_size", ["delete infer.batch_size"]),
        ("~model", ["delete model"]),
        ("infer.prompt='${'", ["infer.prompt", "can't be read"]),
        ("dataset.limit = null", ["no spaces around '='", '"dataset.limit=null"']),
        ("dataset.pattern = [p1*,p2*]", ["no spaces", '"dataset.pattern=[p1*,p2*]"']),
        ("measure.rounds=5  # five", ["no comment behind the value", '"measure.rounds=5"']),
        ("dataset.subset=[it's,b]", ["quotes inside the brackets", "dataset.subset=['a=b.png','c.png']"]),
        ("pipeline.nsys.env={A: x=y}", ["quotes inside the brackets", "pipeline.nsys.env={NAME: 'x=y'}"]),
        (f"{MOUNT} = full", ["no spaces around '='", f'"{MOUNT}=full"']),
        (f"{MOUNT}=full # all", ["no comment behind the value", f'"{MOUNT}=full"']),
        (f"{MOUNT}=a=b", ["a preset is GROUP=NAME, one of default, full, none", f'"{MOUNT}=default"']),
        ("infer=a=b", ["a preset is GROUP=NAME, one of auto, compiled, fast, reference"]),
        ("output/torch=full,none", ["several values: a preset is GROUP=NAME, one of", '"output/torch=default"']),
        (
            "pipeline.torch_profiler/output.prediction.enable=true",
            ["a key is written with dots", '"pipeline.torch_profiler.output.prediction.enable=true"'],
        ),
        (
            "measure.rounds=3 measure.warmup=1",
            [
                "one override for each --llmprof-override: "
                '--llmprof-override "measure.rounds=3" --llmprof-override "measure.warmup=1"'
            ],
        ),
        ("model=deepseek_ocr model.path=/x", ['"model=deepseek_ocr" --llmprof-override "model.path=/x"']),
        ("infer.prompt=a b=c", ["\"infer.prompt='a b=c'\""]),
        ("output/torch.default=full", ["a preset is GROUP=NAME", '"output/torch=default"']),
    ],
)
def test_broken_override(bench, override, parts):
    text = bench.error(override)
    for part in [*parts, "on the command line"]:
        assert part in text


@pytest.mark.parametrize(
    ("override", "key"),
    [("gate.limits.quality.cer='<=1'", "gate.limits.quality"), ("pipeline.nsys.env.A.B=1", "pipeline.nsys.env.A")],
)
def test_a_value_below_one_of_a_mapping_names_where_it_was_set(bench, override, key):
    assert f"{key}={{" in bench.error(override)
    assert "set on the command line;" in bench.error(override)
    assert "set in the ini value llmprof_override;" in bench.error(ini=(override,))


def test_suggested_quoting_works(bench):
    for value in ("a,b", "x=y", "<image>\\nFree", "it's", "a'b\\", "the {a}", "#1", "~/x", "=\\"):
        text = bench.error(ini=(f"infer.prompt={value}",))
        fixed = "infer.prompt=" + text.split("infer.prompt=", 2)[2].split(";")[0]
        assert bench.settings(ini=(fixed,)).infer.prompt == value


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        (
            "pipeline.torch_profiler.outptu.prediction.enable=true",
            [
                "unknown key",
                "enable, window",
                "did you mean 'pipeline.torch_profiler.output.prediction.enable'",
            ],
        ),
        ("+pipeline.torch_profiler.output.prediction.enabel=true", ["did you mean", "prediction.enable'"]),
        ("++typo=1", ["typo=1: unknown key", "stages, model"]),
        ("max_new_tokens=5", ["did you mean 'model.max_new_tokens' or 'infer.max_new_tokens'"]),
        ("modle.path=x", ["did you mean 'model.path'"]),
        ("modle=deepseek_ocr", ["did you mean 'model'"]),
        ("hydra.run.dir=x", ["hydra.run.dir=x: unknown key"]),
        ("stages.0=x", ["stages is a list of text", "set it whole"]),
        (
            "pipeline.torch_profiler.window={pages: 2, foo: 1}",
            ["window.foo=1: unknown key", "pages, start_token"],
        ),
        (
            "pipeline.nsys.output.prediction.enable=true",
            [
                "stage nsys has no output block of its own",
                "tmp/workload/torch_profiler",
                "use pipeline.torch_profiler.output.prediction.enable",
            ],
        ),
        ("pipeline.ncu.output.foo=true", ["no output block", "use pipeline.torch_profiler.output"]),
        ("pipeline.vtune.enable=true", ["unknown stage", "direct_inference, torch_profiler"]),
        (
            "pipeline.static_analysis.output.prediction.enable=true",
            [
                "stage static_analysis has no output block of its own",
                "use pipeline.torch_profiler.output.prediction.enable",
            ],
        ),
        ("pipeline.static_analysis.peak_tflops=0", ["is not allowed", "a number > 0, or null for the table's"]),
        ("pipeline.static_analysis.bandwidth_gbs=-1", ["is not allowed", "a number > 0"]),
        ("pipeline.nsys.timeout_s=inf", ["pipeline.nsys.timeout_s=inf is not allowed", "a number > 0"]),
        ("pipeline.nsys.timeout_s=1e999", ["is not allowed", "a number > 0"]),
        ("pipeline.ncu.timeout_s='inf'", ["is not allowed", "a number > 0"]),
        ("pipeline.ncu.timeout_s=nan", ["is not allowed", "a number > 0"]),
        ("pipeline.ncu.timeout_s=1" + "0" * 400, ["is not allowed", "a number > 0"]),
        ("model.hub_timeout_s=inf", ["is not allowed", "a number > 0"]),
        ("pipeline.static_analysis.peak_tflops=inf", ["is not allowed", "a number > 0"]),
        ("pipeline.static_analysis.bandwidth=5", ["unknown key", "did you mean"]),
        ("pipeline.torch_profler.enable=true", ["unknown stage", "did you mean 'torch_profiler'"]),
        ("outputs.foo=1", ["outputs.foo is an unknown key", "pipeline.torch_profiler.output.*"]),
        (
            "outputs.save_prediction=1",
            ["did you mean 'outputs.save_predictions'", "torch_profiler.output.prediction"],
        ),
        ("output.prediction.save_dir=x", ["use pipeline.torch_profiler.output.prediction.save_dir"]),
        ("outputs=full", ["outputs is an unknown key"]),
        (
            "model=deepseek_orc",
            ["unknown preset", "deepseek_ocr_random, deepseek_ocr_tiny, glm_ocr", "did you mean"],
        ),
        ("infer=[fast,auto]", ["infer=[fast,auto]: one preset can be chosen, not a list", "one of auto"]),
        ("infer=null", ["infer=null: unknown preset", "one of auto", "reference"]),
        ("model=../model/deepseek_ocr", ["unknown preset"]),
        ("output/torhc=full", ["unknown preset group", "did you mean 'output/torch'"]),
        ("infer/max_new_tokens=5", ["unknown preset group", "infer.max_new_tokens=…"]),
        (
            "output/torch@pipeline.nsys.output=full",
            ["stage nsys has no output block of its own", "pipeline.torch_profiler.output"],
        ),
        (
            "output/torch@pipeline.torch_profilr.output=full",
            ["did you mean 'output/torch@pipeline.torch_profiler"],
        ),
        ("model@other=deepseek_ocr", ["nothing is mounted at other"]),
        ("pipeline.torch_profiler=min", ["a block of keys", "pipeline/torch_profiler=min"]),
        ("pipeline.torch_profiler=false", ["a block of keys (write pipeline.torch_profiler.enable=false)"]),
        ("pipeline.nsys=off", ["(write pipeline.nsys.enable=off)"]),
        (
            "pipeline.torch_profiler.output.prediction=True",
            ["(write pipeline.torch_profiler.output.prediction.enable=true)"],
        ),
        ("measure.rounds=${infer.batch_sise}", ["'infer.batch_sise' not found (did you mean 'infer.batch_size'?)"]),
        ("pipeline.torch_profiler.output=null", ["a block of keys"]),
        ("llmprof.test=x", ["llmprof.test can't be set", "${llmprof.test}"]),
    ],
)
def test_unknown(bench, override, parts):
    text = bench.error(override)
    for part in [*parts, "on the command line"]:
        assert part in text


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("pipeline.torch_profiler.output.enable", ["output.prediction.enable", "output.visualization.enable"]),
        ("pipeline.torch_profiler.prediction.enable", ["output.prediction.enable"]),
        ("pipeline.torch_profiler.output.save_dir", ["output.prediction.save_dir", "output.visualization.save_dir"]),
        ("torch_profiler.output.prediction.enable", ["output.prediction.enable"]),
        ("prediction.enable", ["output.prediction.enable"]),
        ("save_dir", ["output.prediction.save_dir", "output.visualization.save_dir"]),
        ("pipeline.torch_profiler.output.max_images", ["output.extra.deepseek_ocr.visualization.max_images"]),
    ],
)
def test_the_key_that_was_meant_is_of_the_stage_that_was_typed(bench, typed, meant):
    names = " or ".join(f"'pipeline.torch_profiler.{key}'" for key in meant)
    assert bench.error(f"{typed}=8").endswith(f"(did you mean {names}?)")
    if "torch_profiler" in typed:
        text = bench.error(f"{typed.replace('torch_profiler', 'direct_inference')}=8")
        assert text.endswith(f"(did you mean {names.replace('torch_profiler', 'direct_inference')}?)")


@pytest.mark.parametrize(
    ("override", "allowed"),
    [
        ("infer.max_new_tokens=many", "an integer >= 1"),
        ("infer.max_new_tokens=0", "an integer >= 1"),
        ("infer.max_new_tokens=2.5", "an integer >= 1"),
        ("infer.max_new_tokens=true", "an integer >= 1"),
        ("infer.batch_size=null", "an integer >= 1"),
        ("infer.batch_size=0", "an integer >= 1"),
        ("infer.no_repeat_ngram_size=-1", "an integer >= 0"),
        ("infer.prompt=", "markdown, free or a prompt's text"),
        ("infer.engine=refernce", "(did you mean 'reference'?)"),
        ("measure.rounds=0", "an integer >= 1"),
        ("measure.warmup=-1", "an integer >= 0"),
        ("model.name=deepseek", "a registered model: deepseek_ocr (did you mean 'deepseek_ocr'?)"),
        ("model.mode=gundan", "tiny, small, base, large, gundam (did you mean 'gundam'?)"),
        ("model.device=gpu", "auto, cpu, cuda or cuda:N"),
        ("model.device=cuda:x", "auto, cpu, cuda or cuda:N"),
        ("model.dtype=bfloat", "one of auto, float32, bfloat16, float16 (did you mean 'bfloat16'?)"),
        ("model.weights=rand", "one of checkpoint, embedded, random (did you mean 'random'?)"),
        ("model.size=huge", "one of full, tiny"),
        ("model.seed=-1", "an integer from 0 to 2**63 - 1"),
        ("model.seed=99999999999999999999", "an integer from 0 to 2**63 - 1"),
        ("infer.max_new_tokens=99999999999999999999", "an integer >= 1 (below 2**63)"),
        ("dataset.limit=9223372036854775808", "an integer >= 1, or null for all pages (below 2**63)"),
        ("pipeline.nsys.timeout_s=nan", "a number > 0"),
        ("model.max_new_tokens=0", "an integer >= 1"),
        ("dataset.name=sample_page", "did you mean 'sample_pages'?"),
        ("dataset.limit=0", "an integer >= 1, or null for all pages"),
        ("dataset.shuffle=maybe", "true or false"),
        ("dataset.pattern=[]", "at least one glob pattern"),
        ("dataset.subset=[]", "at least one page name"),
        ("stages=[]", "at least one stage"),
        ("pipeline.torch_profiler.enable=banana", "true or false"),
        ("pipeline.torch_profiler.window.pages=0", "an integer >= 1"),
        ("pipeline.nsys.capture=a/b", "the name of one NVTX range"),
        ("pipeline.nsys.occurrences=0", "an integer >= 1"),
        ("pipeline.nsys.timeout_s=0", "a number > 0"),
        ("pipeline.nsys.path=bin/nsys", "an absolute path, a program's name, or null"),
        ("pipeline.nsys.env=[a]", "a mapping"),
        ("pipeline.ncu.kernels=top:0", "top:N with N >= 1"),
        ("pipeline.ncu.kernels='a('", "a regular expression"),
        ("pipeline.ncu.launch_skip=-1", "an integer >= 0"),
        ("pipeline.ncu.launch_count=0", "an integer >= 1"),
        ("pipeline.ncu.clock_control=boost", "none or base"),
        ("pipeline.torch_profiler.window.start_token=-1", "an integer >= 0"),
        ("pipeline.torch_profiler.window.decode_tokens=0", "an integer >= 1"),
        ("pipeline.torch_profiler.output.prediction.save_dir=[a]", "text, or null"),
        (f"{MAX_IMAGES}=-1", "an integer >= 0, or null"),
        (f"{MAX_IMAGES}=all", "an integer >= 0, or null"),
        (f"{WIDTH}=0", "an integer >= 1"),
        (f"{WIDTH}=null", "an integer"),
    ],
)
def test_wrong_value(bench, override, allowed):
    key = override.partition("=")[0]
    text = bench.error(override)
    assert text.startswith(f"{key}=")
    assert "is not allowed, set on the command line; it must be" in text
    assert allowed in text


def test_legacy_value_names_both_keys(bench):
    text = bench.error("outputs.visualization.max_images=-1")
    assert MAX_IMAGES in text
    assert "on the command line as outputs.visualization.max_images" in text


@pytest.mark.parametrize("override", ["measure.rounds=0", "measure.roudns=1", "infer=nope", "x=a,b"])
def test_where_it_was_set(bench, override):
    assert "on the command line" in bench.error(override)
    assert "in the ini value llmprof_override" in bench.error(ini=(override,))
    assert "in the marker at tests/test_x.py:12" in bench.error(mark=(override,))


def test_ini_is_not_given_shell_quoting(bench):
    assert bench.error(ini=("infer.prompt=a,b",)).count("--llmprof-override") == 0


def test_wrong_value_is_found_though_another_source_beats_it(bench):
    assert "llmprof_override" in bench.error("measure.rounds=3", ini=("measure.rounds=0",))
    assert "llmprof_override" in bench.error("measure.rounds=3", ini=("measure.roudns=0",))


def test_where_it_was_set_in_the_users_files(bench):
    path = bench.write("config.yaml", "measure: {rounds: many}\n")
    assert f"measure.rounds=many is not allowed, set in {path}" in bench.error()
    bench.write("config.yaml", "measure: {roudns: 3}\n")
    assert f"measure.roudns=3: unknown key, set in {path}" in bench.error()
    bench.write("config.yaml", "measure: 3\n")
    assert "a block of keys" in bench.error()
    bench.write("config.yaml", "outputs: {foo: 3}\n")
    assert f"set in {path}" in bench.error()
    path.unlink()
    mine = bench.write("infer/mine.yaml", "max_new_tokens: 0\n")
    assert f"set in preset infer=mine ({mine})" in bench.error("infer=mine")
    bench.write("infer/mine.yaml", "max_new_token: 4\n")
    text = bench.error("infer=mine")
    assert f"infer.max_new_token=4: unknown key, set in preset infer=mine ({mine})" in text
    assert "did you mean 'infer.max_new_tokens'" in text
    for name, read in (("on", "True"), ("1", "1")):  # what YAML does not read as text
        bench.write("infer/mine.yaml", f"{name}: 4\n")
        assert f"infer.{read}=4: unknown key, set in preset infer=mine ({mine})" in bench.error("infer=mine")
        model = bench.write("model/mine.yaml", f"family: {{{name}: 4}}\n")
        assert f"family.{read}=4: unknown key, set in preset model=mine ({model})" in bench.error("model=mine")
    mine = bench.write("output/torch/mine.yaml", "visualization: null\n")
    text = bench.error("output/torch=mine")
    assert f"output/torch@pipeline.torch_profiler.output=mine ({mine})" in text
    assert "a block of keys" in text


def test_unknown_stage(bench):
    text = bench.error(stages=("torch_profiler,vtune",))
    assert "unknown stage 'vtune', set by --llmprof-stage on the command line" in text
    assert "direct_inference, torch_profiler" in text
    assert "did you mean 'torch_profiler'" in bench.error(stages=("torchprofiler",))
    assert "in the ini value llmprof_stage" in bench.error(stages=("x",), stages_from_ini=True)
    assert "at least one stage" in bench.error(stages=("",))


def test_marker_cannot_set_stages(bench):
    assert "--llmprof-stage" in bench.error(mark=("stages=[torch_profiler]",))


def test_marker_cannot_set_stages_by_a_preset(bench):
    bench.write("experiment/st.yaml", "# @package _global_\nstages: [direct_inference]\n")
    bench.write("experiment/more.yaml", "defaults: [st]\n")
    for name in ("st", "more"):
        text = bench.error(mark=(f"experiment={name}",))
        assert f"stages of the preset experiment={name} can't be set in the marker at" in text
        assert "--llmprof-stage" in text
    assert bench.settings("experiment=st").stages == ("direct_inference",)


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ("{foo: 1}", "llmprof.foo=1: unknown key, set in"),
        ("{test: x}", "llmprof.test can't be set in"),
        ("{test: x, stage: y, foo: 1}", "llmprof.foo=1: unknown key, set in"),
        ("5", "llmprof"),
    ],
)
def test_only_a_saved_configuration_has_a_test_and_a_stage(bench, body, part):
    preset = bench.write("experiment/st.yaml", f"# @package _global_\nllmprof: {body}\n")
    text = bench.error("experiment=st")
    assert text.startswith("llmprof")
    assert str(preset) in text
    path = bench.write("config.yaml", f"llmprof: {body}\n")
    assert part in bench.error()
    assert str(path) in bench.error()


def test_marker_error_belongs_to_its_test(bench):
    composer = bench.composer()
    with pytest.raises(Exception, match="marker at a:1"):
        composer.for_test(("measure.rounds=0",), "a:1", "t", "torch_profiler")
    assert composer.session().measure.rounds == 2
    assert composer.for_test((), "", "t", "torch_profiler").measure.rounds == 2


def test_interpolations(bench, monkeypatch):
    monkeypatch.setenv("LLMPROF_TEST_ROUNDS", "5")
    assert bench.settings("measure.rounds=${oc.env:LLMPROF_TEST_ROUNDS}").measure.rounds == 5
    monkeypatch.setenv("LLMPROF_TEST_ROUNDS", "many")
    assert "measure.rounds=many is not allowed" in bench.error("measure.rounds=${oc.env:LLMPROF_TEST_ROUNDS}")
    monkeypatch.delenv("LLMPROF_TEST_ROUNDS")
    text = bench.error("measure.rounds=${oc.env:LLMPROF_TEST_ROUNDS}")
    assert text.startswith("measure.rounds: Environment variable 'LLMPROF_TEST_ROUNDS' not found")
    assert "nope.x" in bench.error("model.path=${nope.x}")
    assert "Recursive" in bench.error("model.path=${model.path}")


def test_texts_are_taken_as_they_were_typed(bench):
    assert bench.settings("model.revision=1e3").model.revision == "1e3"
    assert bench.settings("model.revision=0012").model.revision == "0012"
    assert bench.settings("infer.prompt=True").infer.prompt == "True"
    assert bench.settings("dataset.pattern=*.png").dataset.pattern == ("*.png",)
    assert bench.settings("dataset.pattern=[a,b]").dataset.pattern == ("a", "b")
    assert bench.settings("dataset.subset=[a,b]").dataset.subset == ("a", "b")
    bench.write("config.yaml", "model: {revision: 1e3}\n")
    assert "quote a text that looks like a number" in bench.error()


@pytest.mark.parametrize(
    ("typed", "texts"),
    [
        ("[2024_01,2024_02]", ("2024_01", "2024_02")),
        ("[1_0]", ("1_0",)),
        ("[ 1.50 , a, 'x,3_0', \"it's 4_0\", True, 1e3]", ("1.50", "a", "x,3_0", "it's 4_0", "True", "1e3")),
        ("[a,cuda:0,2_0]", ("a", "cuda:0", "2_0")),
        ("['${infer.prompt}',1_0]", ("markdown", "1_0")),
    ],
)
def test_items_of_a_list_are_taken_as_they_were_typed(bench, typed, texts):
    assert bench.settings(f"dataset.subset={typed}").dataset.subset == texts
    assert bench.settings(f"dataset={{limit: 1_0, subset: {typed}}}").dataset.subset == texts
    assert bench.settings(f"dataset={{subset: {typed}, limit:1_0}}").dataset.limit == 10


def test_values_in_braces_are_taken_as_they_were_typed(bench, output):
    block = "{prediction: {enable: true, save_dir: 2024_01_02}}"
    prediction = output(bench.settings(f"pipeline.torch_profiler.output={block}")).prediction
    assert (prediction.enable, prediction.save_dir) == (True, "2024_01_02")
    env = bench.settings("pipeline.nsys.env={A:1_0,B:2.50}").pipeline["nsys"].options.env
    assert env == {"A": "1_0", "B": "2.50"}


@pytest.mark.parametrize("name", ["2024_01", "1.50", "no", "true"])
def test_the_name_of_a_preset_is_taken_as_it_was_typed(bench, name):
    bench.write(f"infer/{name}.yaml", "defaults: [reference]\nbatch_size: 3\n")
    assert bench.settings(f"infer={name}").infer.batch_size == 3


def test_lenient_values(bench):
    assert bench.settings("measure.rounds='7'").measure.rounds == 7
    assert bench.settings("dataset.shuffle=yes").dataset.shuffle is True
    assert bench.settings("dataset={limit: 2, shuffle: on}").dataset.limit == 2


def test_a_value_in_a_file_that_a_defaults_list_names(bench):
    """The file that the value stands in is named, however it came in."""
    for name, defaults in (
        ("common", "[llmprof_root, common]"),
        ("night/a", "[llmprof_root, {night: [a, b]}]"),
        ("night/a", "[llmprof_root, night/a]"),
    ):
        bench.write("night/b.yaml", "# @package _global_\n")
        bench.write("config.yaml", f"defaults: {defaults}\n")
        head = "# @package _global_\n" if name == "night/a" else ""
        path = bench.write(f"{name}.yaml", f"{head}measure: {{rounds: x}}\n")
        assert f"measure.rounds=x is not allowed, set in {path}; " in bench.error()
        bench.write(f"{name}.yaml", f"{head}measure: {{round: 4}}\n")
        assert f"measure.round=4: unknown key, set in {path}; " in bench.error()
        bench.write(f"{name}.yaml", f"{head}measure: {{rounds: 4}}\n")
        assert f"rounds: 4  # {path}\n" in bench.composer().show()
    bench.write("config.yaml", "defaults: [llmprof_root, {override infer: [reference, mine]}]\n")
    mine = bench.write("infer/mine.yaml", "batch_size: x\n")
    assert f"infer.batch_size=x is not allowed, set in {mine}; " in bench.error()


def test_a_value_in_a_preset_that_another_lists(bench):
    bench.write("infer/m.yaml", "defaults: [n]\nmax_new_tokens: 5\n")
    listed = bench.write("infer/n.yaml", "batch_size: x\n")
    assert f"infer.batch_size=x is not allowed, set in {listed}, by way of preset infer=m; " in bench.error("infer=m")
    bench.write("infer/n.yaml", "batch_sice: 2\n")
    assert f"infer.batch_sice=2: unknown key, set in {listed}, by way of preset infer=m; " in bench.error("infer=m")


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ("# mine\n# @package _global_", "is not read: # @package _global_ must be the first line of the file"),
        ("---\n#@package _global", "is not read: # @package _global_ must be the first line of the file"),
        ("# @package: _global_", "is not read: # @package _global_ must be the first line of the file"),
        ("# @package global", "names a block of keys: write # @package _global_"),
    ],
)
def test_a_package_line_that_does_not_say_what_is_meant(bench, head, words):
    path = bench.write("night/a.yaml", f"{head}\nmeasure: {{rounds: 8}}\n")
    line = head.split("\n")[-1]
    assert bench.error("night=a") == f"{path}: its line {line} {words}"


@pytest.mark.parametrize("head", ["\ufeff# @package _global_", "\n# @package _global_\n# not\n# @package global"])
def test_a_package_line_that_is_read(bench, head):
    """Also behind the mark that some editors put at the beginning of a file. Another one is but a comment."""
    bench.write("night/a.yaml", f"{head}\nmeasure: {{rounds: 8}}\n")
    assert bench.settings("night=a").measure.rounds == 8


def test_a_preset_whose_name_needs_quotes(bench):
    bench.write("infer/schnell-ü.yaml", "batch_size: 2\n")
    words = "can't be read: the preset's name needs quotes: "
    assert bench.error("infer=schnell-ü").endswith(f"{words}--llmprof-override \"infer='schnell-ü'\"")
    assert bench.error(ini=("+infer=schnell-ü",)).endswith(f"{words}+infer='schnell-ü'")
    assert bench.settings("infer='schnell-ü'").infer.batch_size == 2
