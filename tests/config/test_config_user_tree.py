"""The user's own tree over the packaged one."""

from __future__ import annotations

import os

import pytest

MOUNT = "output/torch@pipeline.torch_profiler.output"


def test_missing_empty_or_no_directory(bench, tmp_path):
    missing = tmp_path / "nope"
    assert f"{missing} does not exist" in bench.error(config_dir=missing)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"{empty} holds no .yaml file" in bench.error(config_dir=empty)
    file = tmp_path / "file"
    file.write_text("x")
    assert f"{file} is not a directory" in bench.error(config_dir=file)


def test_relative_config_dir_is_under_the_invocation_dir(bench):
    (bench.start / "mine" / "infer").mkdir(parents=True)
    (bench.start / "mine" / "infer" / "a.yaml").write_text("max_new_tokens: 3\n")
    assert bench.settings("infer=a", config_dir="mine").infer.max_new_tokens == 3


def test_directory_with_awkward_characters(bench, tmp_path):
    path = tmp_path / "it's a, [b] {c} $x=y"
    (path / "infer").mkdir(parents=True)
    (path / "infer" / "a.yaml").write_text("max_new_tokens: 3\n")
    (path / "config.yaml").write_text("measure: {rounds: 9}\n")
    settings = bench.settings("infer=a", config_dir=path)
    assert (settings.infer.max_new_tokens, settings.measure.rounds) == (3, 9)


def test_config_that_only_changes_keys(bench):
    bench.write(
        "config.yaml",
        '# ours\nmeasure:\n  rounds: 9\nmodel:\n#  mode: base\ninfer: {prompt: "it\'s, a=b"}\n'
        "dataset: {pattern: ['*.png', 'a,b']}\n"
        "pipeline: {torch_profiler: {output: {prediction: {save_dir: '/out/${llmprof.test}'}}}}\n",
    )
    settings = bench.settings()
    assert settings.measure.rounds == 9
    assert settings.model.mode == "tiny"
    assert settings.infer.prompt == "it's, a=b"
    assert settings.dataset.pattern == ("*.png", "a,b")
    assert settings.current.output.prediction.save_dir == "/out/mod/test_a"
    assert settings.current.output.visualization.save_dir == "viz"
    assert settings.choices["infer"] == "auto"


def test_a_tree_may_choose_presets_of_hydra_itself(bench):
    """It may be an application's, too; the configuration that only Hydra needs is composed for such a tree alone."""
    bench.write("config.yaml", "defaults: [llmprof_root, override hydra/job_logging: disabled, _self_]\n")
    assert not any("hydra" in key for key in bench.settings().choices)
    bench.write("config.yaml", "defaults: [llmprof_root, override hydra/job_loging: disabled, _self_]\n")
    assert "hydra/job_loging" in bench.error()


@pytest.mark.parametrize("root", ["llmprof_root", "/llmprof_root"])
@pytest.mark.parametrize("own", ["_self_", None, "first"])
def test_config_that_lists_our_root(bench, root, own):
    bench.write("output/torch/mine.yaml", "defaults: [default]\nprediction: {enable: true}\n")
    entries = [root, f"override {MOUNT}: mine", *(["_self_"] if own == "_self_" else [])]
    if own == "first":
        entries.insert(0, "_self_")
    bench.write(
        "config.yaml",
        f"defaults: [{', '.join(entries)}]\nmeasure: {{rounds: 9}}\n"
        "pipeline: {torch_profiler: {output: {visualization: {save_dir: v}}}}\n",
    )
    settings = bench.settings()
    assert settings.choices[MOUNT] == "mine"
    assert settings.measure.rounds == 9
    assert settings.current.output.prediction.enable is True
    assert settings.current.output.visualization.save_dir == "v"
    assert settings.pipeline["direct_inference"].output.prediction.enable is False
    assert bench.settings(f"{MOUNT}=none").choices[MOUNT] == "none"


def test_config_with_a_defaults_list_of_its_own(bench):
    bench.write(
        "config.yaml",
        "defaults: [{model: deepseek_ocr_random}, {infer: reference}, _self_]\nmeasure: {rounds: 2}\n",
    )
    settings = bench.settings()
    assert settings.model.weights == "random"
    assert settings.measure.rounds == 2
    assert settings.current.output.visualization.enable is True
    assert settings.dataset.name == "sample_pages"


@pytest.mark.parametrize("name", ["config", "/config"])
def test_config_that_lists_itself(bench, name):
    path = bench.write("config.yaml", f"defaults: [{name}, _self_]\n")
    assert "write defaults: [llmprof_root, _self_]" in bench.error()
    assert str(path) in bench.error()


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("[b]", "[/infer/a]"),
        ("[{/infer: [b]}]", "[reference, a@_here_]"),
        ("[a]", ""),
        ("[a.yaml]", ""),
        ("[./a]", ""),
        ("[../infer/a]", ""),
        ("[b.yaml]", "[./a.yaml]"),
    ],
)
def test_presets_that_include_each_other(bench, a, b):
    """Their files are named, wherever the first of them was chosen."""
    first = bench.write("infer/a.yaml", f"defaults: {a}\n")
    by = f", by way of {bench.write('infer/b.yaml', f'defaults: {b}')}" if b else ""
    bench.write("night/c.yaml", "# @package _global_\ndefaults: [{override /infer: a}]\n")
    text = f"{first}: its defaults list includes this file itself{by}; take the entry out"
    assert bench.error("night=c") == text
    bench.write("config.yaml", "defaults: [llmprof_root, {override infer: a}]\n")
    assert bench.error() == text


def test_a_preset_that_is_chosen_in_the_place_of_what_it_names(bench):
    first = bench.write("infer/a.yaml", "defaults: [{/infer@_here_: reference}]\n")
    assert bench.error("infer=a") == f"{first}: its defaults list includes this file itself; take the entry out"


@pytest.mark.parametrize(
    ("a", "by"), [("[/llmprof_root]", "llmprof_root"), ("[b, c]", "{b}"), ("[{/infer: [c, b]}, _self_]", "{c} and {b}")]
)
def test_endless_presets_that_branch_are_found_at_once(bench, a, by):
    """Composed until Python's own limit they take minutes to years."""
    first = bench.write("infer/auto.yaml", f"defaults: {a}\n")
    lists = {"b": "[auto, c]", "c": "[b, auto]"}
    others = {name: bench.write(f"infer/{name}.yaml", f"defaults: {entries}\n") for name, entries in lists.items()}
    if a == "[b, c]":
        bench.write("infer/c.yaml", "")
    text = f"{first}: its defaults list includes this file itself, by way of {by.format(**others)}; take the entry out"
    assert bench.error() == text


@pytest.mark.parametrize("option", ["null", "[sample_pages, mine]", "'???'", "mine"])
@pytest.mark.parametrize("where", ["cli", "ini", "mark"])
def test_a_given_preset_takes_the_place_of_any_entry(bench, option, where):
    """Also of none, of several, and of one that is still to be chosen."""
    bench.write("dataset/mine.yaml", "limit: 1\n")
    bench.write("config.yaml", f"defaults: [llmprof_root, {{override dataset: {option}}}]\n")
    given = ("dataset=documents",)
    settings = bench.settings(*given) if where == "cli" else bench.settings(**{where: given})
    assert (settings.dataset.name, settings.dataset.limit) == ("documents", None)


@pytest.mark.parametrize("entry", ["night: null", "night: '???'", "night: [b, c]", "night: b", "/extra: c"])
def test_a_group_of_ones_own_is_chosen_beside_any_entry(bench, entry):
    for name, rounds in (("a", 8), ("b", 6), ("c", 5)):
        bench.write(f"night/{name}.yaml", f"# @package _global_\nmeasure: {{rounds: {rounds}}}\n")
    bench.write("extra/c.yaml", "# @package _global_\nmeasure: {warmup: 0}\n")
    bench.write("config.yaml", f"defaults: [llmprof_root, {{{entry}}}]\n")
    assert bench.settings("night=a").measure.rounds == 8
    assert bench.settings(mark=("night=a",)).measure.rounds == 8


def test_a_mount_without_a_preset_is_one_of_the_groups(bench, output):
    mount = "output/torch@pipeline.torch_profiler.output"
    bench.write("config.yaml", f"defaults: [llmprof_root, {{override {mount}: null}}]\n")
    assert output(bench.settings("output/torch=full")) == output(bench.settings("output/torch=full", config_dir=None))


def test_a_group_that_only_another_preset_names(bench):
    """It is chosen with that preset, by its short and its long name."""
    bench.write("experiment/n.yaml", "# @package _global_\ndefaults: [{/sched: fast}]\n")
    for name, rounds in (("fast", 2), ("slow", 9)):
        bench.write(f"sched/{name}.yaml", f"# @package _global_\nmeasure: {{rounds: {rounds}}}\n")
    assert bench.settings("experiment=n").measure.rounds == 2
    assert bench.settings("experiment=n", "sched=slow").measure.rounds == 9
    bench.write("infer/m.yaml", "defaults: [reference, {extra@_here_: y}]\n")
    for name, size in (("x", 3), ("y", 2)):
        bench.write(f"infer/extra/{name}.yaml", f"batch_size: {size}\n")
    assert bench.settings("infer=m").infer.batch_size == 2
    assert bench.settings("infer=m", "infer/extra=x").infer.batch_size == 3
    assert bench.settings("infer=m", "infer/extra@infer=x").infer.batch_size == 3
    text = "infer/extra@model=x: nothing is mounted at model, set on the command line; "
    assert bench.error("infer=m", "infer/extra@model=x") == text + "infer/extra is mounted as infer/extra@infer"


def test_a_group_that_is_overridden_twice(bench):
    """Hydra takes the first, where the later wins everywhere else."""
    path = bench.write("config.yaml", "defaults: [llmprof_root, override infer: reference, override /infer: fast]\n")
    assert bench.error() == f"{path}: its defaults list overrides infer twice: keep one of the entries"


@pytest.mark.parametrize(
    ("place", "defaults", "entry"),
    [
        ("config", "[llmprof_root, {infer: fast}]", "infer: fast"),
        ("config", "[llmprof_root, night]", None),
        ("night", "[{/dataset: documents}]", "/dataset: documents"),
        ("night", "[{/dataset: documents}, {override /infer: fast}]", "/dataset: documents"),
    ],
)
def test_an_entry_without_the_word_override(bench, place, defaults, entry):
    path = bench.write(f"{place}.yaml", f"defaults: {defaults}\n")
    if place == "night":
        bench.write("config.yaml", "defaults: [llmprof_root, night]\n")
    if entry is None:
        path, entry = bench.write("night.yaml", "defaults: [{infer: fast}]\n"), "infer: fast"
    group = entry.partition(":")[0].strip("/")
    assert bench.error() == (
        f"{path}: its defaults list names {entry}, and another entry chooses for {group}, too; write override {entry}"
    )


def test_what_hydra_refuses_begins_with_the_file(bench):
    path = bench.write("config.yaml", "defaults: [override infer: fast, llmprof_root]\n")
    assert bench.error().startswith(f"{path}: Override 'infer : fast' is defined before")


def test_the_root_of_an_application_lies_beside_presets(bench):
    """Hydra reads it in that application; without a defaults list it would be read nowhere."""
    bench.write("config.yaml", "measure: {rounds: 2}\n")
    path = bench.write("infer.yaml", "defaults: [_self_]\nbatch_size: 9\n")
    assert bench.settings().infer.batch_size == 1
    path.write_text("batch_size: 9\n")
    assert f"{path} is not read" in bench.error()


def test_many_presets_are_no_endless_ones(bench):
    """More than are composed before it is looked whether they are endless, each named by two others."""
    for number in range(7):
        bench.write(f"infer/x{number}.yaml", f"defaults: [x{number + 1}, x{number + 1}@other]\n")
    bench.write("infer/x7.yaml", "batch_size: 3\n")
    bench.write("infer/auto.yaml", "defaults: [x0]\n")
    assert bench.error().startswith("infer.other.batch_size=3: unknown key")


def test_a_preset_that_includes_the_packaged_one_it_replaces(bench):
    file = bench.write("infer/auto.yaml", "defaults: [auto]\nbatch_size: 4\n")
    assert bench.error() == (
        f"{file}: its defaults list includes this file itself; "
        "to build on the packaged preset of this name, give this file another one"
    )


def test_bad_defaults(bench):
    path = bench.write("config.yaml", "defaults: [llmprof_root, override output/torch: full]\n")
    assert "override output/torch@pipeline.torch_profiler.output: full" in bench.error()
    bench.write("config.yaml", "defaults: {a: b}\n")
    assert "defaults must be a list" in bench.error()
    bench.write("config.yaml", "defaults: [llmprof_root, override infer: nope]\n")
    assert "infer/nope" in bench.error()
    bench.write("config.yaml", "defaults: [llmprof_root, nope]\n")
    assert "names nope, which is no file" in bench.error()
    for defaults, part in (
        ("[{dataset: documents}, _self_]", "begin it with llmprof_root"),
        ("[]", "begin it with llmprof_root"),
        ("[llmprof_roots]", "did you mean 'llmprof_root'?"),
        ("[llmprof_root, override dataset: documnts]", "names dataset/documnts, which is no preset (did you mean"),
        ("[llmprof_root, override datset: documents]", "the group datset, which is none (did you mean 'dataset'?)"),
    ):
        bench.write("config.yaml", f"defaults: {defaults}\n")
        assert part in bench.error()
        assert str(path) in bench.error()
    assert path.exists()


def test_a_preset_that_names_what_is_not_there(bench):
    path = bench.write("night/a.yaml", "# @package _global_\ndefaults: [{override /model: nope}]\n")
    for config in (None, "measure: {rounds: 2}\n", "defaults: [llmprof_root, override infer: fast]\n"):
        if config is not None:
            bench.write("config.yaml", config)
        assert "Could not find 'model/nope'" in bench.error("night=a")
        assert "config.yaml" not in bench.error("night=a")
    path.write_text("# @package _global_\ndefaults: [{/infer: nope}]\n")
    assert bench.error("night=a").startswith("the presets don't compose: infer appears more than once")
    path.write_text("# @package _global_ x\nmeasure: {rounds: 2}\n")
    assert bench.error("night=a").startswith(f"{path}: Too many components")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("family: [a]", "model.family is a list; it must be a block of keys"),
        ("family: {stop: {a: 1}}", "model.family.stop is a block of keys; it must be a list"),
    ],
)
def test_a_list_in_the_place_of_a_block(bench, body, words):
    bench.write("model/odd.yaml", f"defaults: [transformers]\n{body}\n")
    assert bench.error("model=odd") == f"the presets don't compose: model/odd.yaml: {words}"


def test_files_that_are_not_yaml(bench):
    path = bench.write("config.yaml", "measure:\n  rounds: [\n")
    assert f"{path}:" in bench.error()
    assert "is not YAML" in bench.error()
    bench.write("config.yaml", "- a\n- b\n")
    assert "keys and values" in bench.error()
    path.write_bytes(b"\xff\xfe\x00a")
    assert "can't be read" in bench.error()
    path.unlink()
    preset = bench.write("infer/bad.yaml", "a: [\n")
    assert "infer" in bench.error("infer=bad")
    assert str(preset) in bench.error("infer=bad")


def test_empty_config_changes_nothing(bench):
    plain = bench.settings().yaml
    bench.write("config.yaml", "# nothing yet\n")
    assert bench.settings().yaml == plain


def test_own_presets(bench):
    bench.write("infer/mine.yaml", "defaults: [reference]\nbatch_size: 4\n")
    bench.write("model/mine.yaml", "defaults: [deepseek_ocr_random]\nmode: large\n")
    settings = bench.settings("infer=mine", "model=mine")
    assert settings.infer.batch_size == 4
    assert settings.infer.max_new_tokens == 256
    assert (settings.model.mode, settings.model.weights) == ("large", "random")
    assert "lighton_ocr, mine" in bench.error("model=min")


def test_preset_of_ours_replaced_by_the_users(bench):
    bench.write("infer/auto.yaml", "max_new_tokens: 77\n")
    settings = bench.settings()
    assert settings.infer.max_new_tokens == 77
    assert settings.infer.no_repeat_ngram_size == 35


def test_own_group_that_sets_keys_anywhere(bench):
    bench.write(
        "experiment/a.yaml",
        "# @package _global_\ndefaults: [{override /model: deepseek_ocr_random}]\nmeasure: {rounds: 8}\n",
    )
    for text in ("experiment=a", "+experiment=a"):
        settings = bench.settings(text)
        assert settings.measure.rounds == 8
        assert settings.choices["model"] == "deepseek_ocr_random"
    assert bench.settings("experiment=a", ini=("measure.rounds=2",)).measure.rounds == 2


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("config.yml", "config.yml is not read: name it config.yaml"),
        ("conf/config.yaml", "lies a level too deep: give --llmprof-config-dir="),
        ("output/torch.default.yaml", "the preset 'default' of output/torch is the file output/torch/default.yaml"),
        (
            "model/deepseek_ocr/output/torch.default.yaml",
            "the preset 'default' of model/deepseek_ocr/output/torch is the file "
            "model/deepseek_ocr/output/torch/default.yaml",
        ),
    ],
)
def test_a_file_that_would_never_be_read(bench, name, part):
    bench.write("infer/mine.yaml", "max_new_tokens: 3\n")
    bench.write(name, "measure: {rounds: 9}\n")
    assert part in bench.error()


def test_a_config_yaml_that_is_no_file(bench):
    """A link whose target has gone would leave the packaged values in place, in silence."""
    bench.write("infer/mine.yaml", "max_new_tokens: 3\n")
    file = bench.user / "config.yaml"
    file.symlink_to("gone.yaml")
    assert bench.error().endswith(f"{file} is a link to what is not there")
    file.unlink()
    file.mkdir()
    assert bench.error().endswith(f"{file} is no file")


@pytest.mark.parametrize("folder", ["", "infer", "pipeline"])
def test_a_directory_that_cannot_be_read_is_not_passed_over(bench, monkeypatch, folder):
    """Else its presets would be the packaged ones, in silence."""
    bench.write("infer/auto.yaml", "max_new_tokens: 3\n")
    bench.write("pipeline/torch_profiler/default.yaml", "window: {pages: 2}\n")
    closed, access = (bench.user / folder).resolve(), os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != closed and access(path, mode))
    assert bench.error().endswith(f"{closed} cannot be read: permission denied")


@pytest.mark.parametrize("closed", ["night", "night/team", "night/config.yaml"])
def test_a_group_of_ones_own_that_cannot_be_read(bench, monkeypatch, closed):
    bench.write("night/team/a.yaml", "# @package _global_\nmeasure: {rounds: 9}\n")
    bench.write("night/config.yaml", "# @package _global_\n")
    refused, access = bench.user / closed, os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != refused and access(path, mode))
    if closed == "night/config.yaml":
        assert bench.error() == f"--llmprof-config-dir={bench.user}: {refused} cannot be read: permission denied"
        return
    (bench.user / "night/team/a.yaml").unlink()  # a closed directory shows none of its files
    (bench.user / "night/config.yaml").unlink()
    text = f"{refused} cannot be read: permission denied"
    assert bench.error() == f"--llmprof-config-dir={bench.user}: {text}"
    bench.write("infer/mine.yaml", "")
    bench.settings()  # what nobody names may be closed, as a lost+found is
    assert bench.error("night=team/a") == bench.error("night/team=a") == text
    bench.write("config.yaml", "defaults: [llmprof_root, {optional night/team: a}]\n")
    assert bench.error() == text


@pytest.mark.parametrize("link", ["night", "night/a.yaml"])
def test_an_optional_preset_that_is_a_dead_link(bench, link):
    bench.write("config.yaml", "defaults: [llmprof_root, {optional night: a}]\n")
    bench.settings()
    path = bench.user / link
    path.parent.mkdir(exist_ok=True)
    path.symlink_to("gone")
    assert bench.error() == bench.error("night=a") == f"{path} is a link to what is not there"


def test_an_optional_preset_of_another_suffix(bench):
    bench.write("config.yaml", "defaults: [llmprof_root, {optional night: a}]\n")
    file = bench.write("night/a.yml", "")
    assert bench.error() == f"{file} is not read: presets end in .yaml"
    bench.write("night/a.yaml", "# @package _global_\nmeasure: {rounds: 9}\n")
    assert bench.settings().measure.rounds == 9


def test_a_group_with_presets_in_subfolders_alone(bench):
    bench.write("night/team/a.yaml", "# @package _global_\nmeasure: {rounds: 9}\n")
    assert bench.settings("night=team/a").measure.rounds == bench.settings("night/team=a").measure.rounds == 9
    assert "night is one of team/a, or a preset of your own" in bench.error("night=team/b")
    assert "did you mean 'team/a'" in bench.error("night=teem/a")
    bench.write("pipeline/other/a.yaml", "")
    assert "a block of keys" in bench.error("pipeline=a")


def test_linked_directories_are_followed_once(bench, tmp_path):
    """Also where they are all that there is."""
    (tmp_path / "real/sub").mkdir(parents=True)
    (tmp_path / "real/sub/a.yaml").write_text("# @package _global_\nmeasure: {rounds: 9}\n")
    (tmp_path / "real/sub/self").symlink_to("..")
    bench.user.mkdir()
    (bench.user / "night").symlink_to("../real")
    assert bench.settings("night=sub/a").measure.rounds == 9
    assert "did you mean 'night/sub'" in bench.error("night/sob=a")


@pytest.mark.parametrize("made", ["link", "directory", "fifo"])
@pytest.mark.parametrize(("name", "kind"), [("infer/auto.yaml", "file"), ("infer", "directory")])
def test_what_is_no_preset_in_the_place_of_one(bench, made, name, kind):
    bench.write("model/mine.yaml", "defaults: [transformers]\n")
    path = bench.user / name
    path.parent.mkdir(exist_ok=True)
    if made == "link":
        path.symlink_to("gone.yaml")
    elif made == "fifo":
        os.mkfifo(path)
    elif kind == "file":
        path.mkdir()
    else:
        path.write_text("")
    why = "is a link to what is not there" if made == "link" else f"is no {kind}"
    assert bench.error() == f"--llmprof-config-dir={bench.user}: {path} {why}"


def test_the_lock_of_an_editor_is_no_preset(bench):
    bench.write("infer/auto.yaml", "max_new_tokens: 3\n")
    (bench.user / "infer/.#auto.yaml").symlink_to("me@host.1234:1")
    assert bench.settings().infer.max_new_tokens == 3


SUFFIX, CONFIG = "presets end in .yaml", "name it config.yaml"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("infer/auto.yml", SUFFIX),
        ("infer/auto.YAML", SUFFIX),
        ("model/deepseek_ocr/output/torch/default.Yml", SUFFIX),
        ("config.yml", CONFIG),
        ("config.YAML", CONFIG),
        ("Config.yaml", CONFIG),
        ("infer.yaml", "presets of infer lie in infer/"),
        ("measure.yaml", "write its keys in config.yaml, measure:"),
        ("pipeline.yaml", "write its keys in config.yaml, pipeline:"),
        ("Infer/auto.yaml", "name it infer"),
        ("OUTPUT/torch/full.yaml", "name it output"),
        ("output/Torch/full.yaml", "name it output/torch"),
    ],
)
@pytest.mark.parametrize("beside", [None, "config.yaml", "infer/auto.yaml"])
def test_a_name_that_is_not_read(bench, name, why, beside):
    """The packaged presets would be used instead, in silence."""
    if beside:
        bench.write(beside, "")
    bench.write(name, "rounds: 3\n")
    text = bench.error()
    assert text.startswith(f"--llmprof-config-dir={bench.user}: {bench.user}/{name.split('/')[0]}")
    assert text.endswith(f" is not read: {why}")


def test_other_names_in_the_tree_of_an_application(bench):
    for name in ("conf.yml", "train.yaml", "notes.YAML", "inferr/auto.yaml", "web/config.yml", "output/a.yml"):
        bench.write(name, "a: 1\n")
    bench.write("Dataset/readme.txt", "")
    bench.write("dataset.yaml", "a: 1\n")
    bench.write("train.yaml", "defaults: [web: a, /dataset@data, _self_]\n")
    bench.write("measure.yaml", "measure: {rounds: 9}\n")
    bench.write("config.yaml", "defaults: [llmprof_root, _self_]\n")
    assert "measure.yaml is not read" in bench.error()
    bench.write("night/a.yaml", "# @package _global_\ndefaults: [/measure@_global_]\n")
    assert bench.settings("night=a").measure.rounds == 9


def test_a_preset_may_be_called_config(bench):
    bench.write("infer/config.yaml", "max_new_tokens: 3\n")
    assert bench.settings("infer=config").infer.max_new_tokens == 3
    bench.write("night/config.yaml", "# @package _global_\nmeasure: {rounds: 9}\n")  # in a group of one's own
    assert bench.settings("+night=config").measure.rounds == 9


NO_TEXT = "which YAML does not read as text: put the preset's name in quotes"


@pytest.mark.parametrize("value", ["no", "true", "2024", "1.5"])
def test_a_preset_whose_name_yaml_does_not_read_as_text(bench, value):
    path = bench.write("config.yaml", f"defaults: [llmprof_root, {{override {MOUNT}: {value}}}]\n")
    assert f"{path}: its defaults list has override {MOUNT}: " in bench.error()
    assert NO_TEXT in bench.error()


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("defaults: [reference, 5]", f"its defaults list has 5, {NO_TEXT}"),
        ("defaults: [{override /dataset: no}]", f"its defaults list has override /dataset: false, {NO_TEXT}"),
        ("defaults: reference", "defaults must be a list"),
        ("defaults:\n# - reference", "defaults is empty: write defaults: []"),
        (
            "defaults: [referenz]",
            "names referenz, which is no preset (did you mean 'reference'?); infer has auto, compiled",
        ),
        (
            "defaults: [infer: reference]",
            "names the group infer/infer, which is none: a preset of its own group is named alone, - reference",
        ),
        (
            "defaults: [/infer/reference]",
            "names /infer/reference, which would set infer.infer.prompt: a preset of its own group is named alone, "
            "- reference",
        ),
        ("defaults: [{/infer: reference}]", "names /infer/reference, which would set infer.infer.prompt: a preset of"),
        (
            "defaults: [/dataset/documents]",
            "names /dataset/documents, which would set infer.dataset.name: choose it beside this preset, "
            "dataset=documents",
        ),
        ("5", "can't be read: Invalid loaded object type: int"),
        ('prompt: "costs ${5"', "prompt can't be read"),
        (b"prompt: \xe9", "can't be read: 'utf-8' codec"),
    ],
)
def test_a_preset_that_hydra_cannot_read_is_named(bench, text, part):
    path = bench.write("infer/x.yaml", "")
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    bench.write("infer/y.yaml", "defaults: [x]\n")
    bench.write("night/z.yaml", "# @package _global_\ndefaults: [{override /infer: x}]\n")
    for given in ({"mark": ("infer=x",)}, {"ini": ("infer=y",)}, {"ini": ("night=z",)}):
        assert bench.error(**given).startswith(str(path))
        assert part in bench.error(**given)
    assert bench.settings().infer.batch_size == 1


def test_a_preset_below_the_keys_of_another(bench):
    """Where that is a block there, `/group/option` is right."""
    bench.write("prediction/on.yaml", "enable: true\n")
    mine = bench.write("output/torch/mine.yaml", "defaults: [default, /prediction/on]\n")
    assert bench.settings("output/torch=mine").current.output.prediction.enable
    bench.write("prediction/on.yaml", "enabled: true\n")
    assert "output.prediction.enabled=true: unknown key" in bench.error("output/torch=mine")
    mine.write_text("defaults: [/output/torch/default]\n")
    assert bench.error("output/torch=mine") == (
        f"{mine}: its defaults list names /output/torch/default, which would set pipeline.torch_profiler.output.output."
        "torch.prediction.enable: a preset of its own group is named alone, - default"
    )


def test_dotted_keys_of_a_preset_are_refused(bench):
    """They work in config.yaml. Of two presets it can't be told which set them, so they are not silently dropped."""
    mini = bench.write("pipeline/torch_profiler/mini.yaml", "window.decode_tokens: 4\n")
    text = bench.error("pipeline/torch_profiler=mini")
    assert f"window.decode_tokens, in preset pipeline/torch_profiler=mini ({mini});" in text
    assert text.endswith("write window: {decode_tokens: …}")
    bench.write("output/torch/mine.yaml", "prediction.enable: true\n")
    assert f"{MOUNT}=mine (" in bench.error(f"{MOUNT}=mine")
    bench.write("night/a.yaml", "# @package _global_\npipeline.torch_profiler.window.pages: 2\n")
    assert "write pipeline: {torch_profiler: {window: {pages: …}}}" in bench.error("night=a")
    bench.write("pipeline/nsys/a.yaml", "defaults: [default]\nenv: {A.B: c}\n")
    assert bench.settings("pipeline/nsys=a").pipeline["nsys"].options.env == {"A.B": "c"}
    bench.write("config.yaml", "pipeline.torch_profiler.window.decode_tokens: 4\n")
    assert bench.settings().current.options.window.decode_tokens == 4
