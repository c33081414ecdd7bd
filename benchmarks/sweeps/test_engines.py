"""The engines side by side: every packaged preset of `infer` that names one, on the same pages, against what the memory
allows.

Three kinds of answer: `page`, one page from its start; `late`, the same page behind a prompt so long that the
answer lies around place 1,900 of the cache; `eight`, eight pages at once. The last test prints a table and writes
engines.json and engines.md to its stage directory. Nothing is asserted about speed.

    floor    = bytes a decode step must read and write (weights and cache, by the model's own costs) / copy rate
    of floor = floor / TPOT, the harness's own: host clock, arrival of tokens, every gap of the loop included

The copy rate is that of a large buffer on the same device, reads and writes counted, taken after each test of this
run. An engine that cannot run on this machine says so; its tests are skipped with that reason (`pytest -rs` shows
it). The reference runs everywhere. Run it in one process: under xdist each worker has its own tests alone.
"""

from dataclasses import asdict, dataclass, field
from statistics import median

import pytest
from rates import copy_rate
from sweep import markdown, publish, sweep, why_not

from pytest_llmprof.config.paths import conf_dir
from pytest_llmprof.config.schema import AUTO
from pytest_llmprof.models.base import Costed, NoPhases

pytestmark = pytest.mark.llmprof(overrides=["infer.ignore_eos=true", "measure.rounds=3", "measure.warmup=2"])
PRESETS = sorted(
    (path.stem for path in (conf_dir() / "infer").glob("*.yaml") if path.stem != AUTO),
    key=lambda name: (name != "reference", name),
)

POSITION, ANSWER = 1900, 128
FRAME = 275
"""Prompt tokens beside the text in mode base: 273 of the picture, the begin and a line break."""
TEXT = ("a1b2c3d4e5f6g7h8i9j0" * POSITION)[: POSITION - ANSWER // 2 - FRAME]
"""Letters and digits in turn, which tokenizers don't join: each is a token. In other modes the picture takes more or
fewer places; the table has the position that was reached."""
KINDS = {
    "page": ["dataset.limit=1", "infer.max_new_tokens=256"],
    "late": ["dataset.limit=1", f"infer.max_new_tokens={ANSWER}", f"infer.prompt={TEXT}"],
    "eight": ["dataset.limit=8", "infer.batch_size=8", "infer.max_new_tokens=64"],
}


@dataclass
class Side:
    """What one engine did in one kind of answer."""

    stage: str
    kind: str
    engine: str
    pages: int
    """Pages at once."""
    position: int | None
    """Filled places of the cache at the middle of the answer."""
    bytes_per_step: float | None
    """Weights and cache that the mean decode step reads and writes."""
    vision_prefill_ms: float
    """Median over batches and rounds."""
    copy_bytes_per_s: float
    figures: dict
    """By the names of metrics.json."""
    deterministic: bool | None
    device: dict
    tokens: list = field(repr=False)
    """The ids of each page of the first batch."""


@pytest.fixture(scope="module")
def sides():
    return []


@pytest.fixture(scope="module")
def left_out():
    """Reasons of what was skipped, by stage, kind and preset."""
    return {}


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, id=kind, marks=pytest.mark.llmprof(overrides=keys)) for kind, keys in KINDS.items()],
)
@pytest.mark.parametrize("preset", sweep(PRESETS, "infer={}"))  # the outer one: a model is loaded once an engine
def test_engine(llmprof, llmprof_config, llmprof_stage, request, sides, left_out, preset, kind):
    if preset != "reference" and (reason := why_not(request)):
        left_out[llmprof_stage, kind, preset] = reason
        pytest.skip(reason)
    run = llmprof.run()
    assert run.tokens is not None
    if run.tpot_ms is None:
        return  # one token, or under a tool: nothing to hold against a floor
    model, infer = request.getfixturevalue("llmprof_model"), llmprof_config.infer
    images = [page.load() for page in request.getfixturevalue("llmprof_dataset")[: infer.batch_size]]
    tokens = answers(model, images, infer)
    position = moved = None
    if isinstance(model, Costed):
        costs = model.costs(images, infer, [len(ids) for ids in tokens])
        steps = costs.details["decode_steps"]
        position = max(costs.details["prompt_tokens"]) + (steps + 1) // 2
        parts = costs.phases["decode"].parts
        moved = (parts["weights"] + parts["cache"]) / steps
    sides.append(
        Side(
            stage=llmprof_stage,
            kind=kind,
            engine=model.info.engine,
            pages=len(images),
            position=position,
            bytes_per_step=moved,
            vision_prefill_ms=median(one.phases["vision"] + one.phases["prefill"] for one in run.samples),
            copy_bytes_per_s=copy_rate(model.info.device),
            figures=dict(run),
            deterministic=run.deterministic,
            device=about(model),
            tokens=tokens,
        )
    )


def test_table(llmprof_artifacts, llmprof_stage, capsys, sides, left_out):
    ours = [side for side in sides if side.stage == llmprof_stage]
    if not ours:
        pytest.skip("no engine was measured in this process")
    rates = [side.copy_bytes_per_s for side in ours]
    rate = median(rates)
    ours.sort(key=lambda side: list(KINDS).index(side.kind))
    rows = [row(side, rate, ours) for side in ours]
    found = {
        **ours[0].device,
        "copy_bytes_per_s": rate,
        "copy_bytes_per_s_least": min(rates),
        "copy_bytes_per_s_most": max(rates),
        "rows": rows,
        "left_out": [
            {"kind": kind, "engine": preset, "reason": reason}
            for (stage, kind, preset), reason in left_out.items()
            if stage == llmprof_stage
        ],
    }
    publish(llmprof_artifacts.begin(llmprof_stage), "engines", found, text(found), capsys)


def answers(model, images, infer):
    """The token ids of each picture, from one more pass outside the clock."""
    ids = [[] for _ in images]
    for token in model.generate(images, infer, NoPhases()):
        ids[token.row].append(token.text if token.id is None else token.id)
    return ids


def about(model):
    """What it ran on, the same for all engines."""
    import torch

    info = model.info
    card = torch.cuda.get_device_name(torch.device(info.device)) if info.device.startswith("cuda") else None
    facts = ("device", "dtype", "mode", "weights", "parameters")
    return {"card": card, **{name: getattr(info, name) for name in facts}}


def row(side, rate, ours):
    """A side's figures, with its floor at the copy rate of the whole run."""
    figures = side.figures
    floor = None if side.bytes_per_step is None else 1e3 * side.bytes_per_step / rate
    told = {name: value for name, value in asdict(side).items() if name not in ("tokens", "device", "figures")}
    return {
        **told,
        "floor_ms": floor,
        "of_floor": None if floor is None else floor / figures["tpot_ms"],
        "equal_tokens": equal_tokens(side, ours),
        "figures": figures,
    }


def equal_tokens(side, ours):
    """The share of places in which the reference has the same token; None where it did not run."""
    reference = next((one.tokens for one in ours if (one.kind, one.engine) == (side.kind, "reference")), None)
    if reference is None:
        return None
    pages = list(zip(side.tokens, reference, strict=True))
    equal = sum(mine == its for page, other in pages for mine, its in zip(page, other, strict=False))
    return equal / sum(max(len(page), len(other)) for page, other in pages)


def text(found):
    """The table, and what was left out."""

    def shown(value, form=None):
        if value is None:
            return "-"
        return format(value, form or (".3g" if value < 100 else ",.0f"))

    head = [
        "engine", "answer: pages x tokens", "position", "TPOT ms", "tokens/s", "MB a step", "floor ms", "of the floor",
        "vision + prefill ms", "TTFT ms", "peak GiB", "tokens as the reference",
    ]  # fmt: skip
    rows = []
    for one in found["rows"]:
        figures, moved = one["figures"], one["bytes_per_step"]
        rows.append(
            [
                one["engine"],
                f"{one['kind']}: {one['pages']} x {figures['tokens']:.0f}",
                shown(one["position"], ",d"),
                shown(figures["tpot_ms"]),
                shown(figures["batch_tokens_per_s"], ",.0f"),
                shown(None if moved is None else moved / 1e6, ",.1f"),
                shown(one["floor_ms"]),
                shown(one["of_floor"], ".1%"),
                shown(one["vision_prefill_ms"]),
                shown(figures["ttft_ms"]),
                shown(figures["peak_memory_gib"], ".2f"),
                shown(one["equal_tokens"], ".1%"),
            ]
        )
    rate, least, most = (f"{found[f'copy_bytes_per_s{end}'] / 1e9:,.4g}" for end in ("", "_least", "_most"))
    lines = [
        f"{found['card'] or found['device']}, {found['parameters'] / 1e6:,.1f} M parameters ({found['weights']}), "
        f"{found['dtype']}, mode {found['mode']}. Copy rate {rate} GB/s (in this run {least} to {most}).",
        "",
        markdown(head, rows),
    ]
    reasons = {}
    for one in found["left_out"]:
        reasons.setdefault((one["engine"], one["reason"]), []).append(one["kind"])
    lines += [f"- {engine} ({', '.join(kinds)}): {reason}" for (engine, reason), kinds in reasons.items()]
    return "\n".join(lines).rstrip("\n") + "\n"
