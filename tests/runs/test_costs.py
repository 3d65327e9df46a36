"""What a run is said to cost: the formulas against the work itself, at rates that are made up; and the question before it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small import ARGS, image_folder, mend, model_folder, plan_for, quicken, recipe_dict, write_recipe
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from vitprune.cli.app import app
from vitprune.core.errors import UserError
from vitprune.core.progress import Reporter
from vitprune.criteria.attribution import jas
from vitprune.criteria.catalog import CRITERIA
from vitprune.model import families, size
from vitprune.paper import tables
from vitprune.pruning import surgery
from vitprune.pruning.repair.streams import DenseStreams
from vitprune.recipe.experiments import Compare
from vitprune.recipe.recipe import Recipe
from vitprune.runs import compare, pipeline
from vitprune.runs.costs import done, estimate, formulas, making, rates, scoring, seeing, telling
from vitprune.runs.costs.estimate import Cost, Estimate
from vitprune.runs.costs.facts import Images, Layer, Set, Shape, left
from vitprune.runs.costs.outline import Outline, Stage, Work
from vitprune.runs.costs.rates import Rates
from vitprune.runs.results import attention
from vitprune.runs.stages import exam, image_scores, score
from vitprune.runs.state.run import Run

Made = dict[str, Any]
FAKED = Rates(
    0.01, 0.02, 0.5, 1.5, 1e9, 1e8, 1e7, 1.0, {"activation": 0.5, "sums fisher-whole": 3.0, "sums fisher": 2.0}
)


@pytest.fixture(name="content")
def small_recipe(tmp_path: Path) -> Made:
    made = recipe_dict(model_folder(tmp_path / "model"), image_folder(tmp_path / "images", 20), tmp_path / "out")
    for key in ("keep", "recovery", "criterion"):
        del made[key]
    return made | {"criterion": {"probe_per_class": 8}, "budget": {"macs": 0.5}, "baselines": ["activation", "random"]}


def opened(content: Made) -> Run:
    run = Run.join(Recipe.model_validate(content), "cpu", Reporter(quiet=True))
    run.preflight()
    return run


@pytest.fixture(name="faked")
def at_made_up_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    found = FAKED.criteria | dict.fromkeys(("jas cls", "jas all", "sums hidden", "sums plain-whole"), 1.0)
    monkeypatch.setattr(rates, "measured", lambda run, asked: replace(FAKED, criteria=found))


@pytest.mark.parametrize("how", ["sequential", "layerwise"])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_the_arithmetic_of_a_repair_is_what_torch_counts(
    tiny_vit: Callable[..., nn.Module], make_images: Callable[..., torch.Tensor], how: str, share: float
) -> None:
    """Products alone: torch counts no solution, and the formula leaves out what is small."""
    model = tiny_vit(dtype=torch.float32, embed_dim=64, num_heads=4, mlp_ratio=4.0, depth=2)
    images = make_images(40, dtype=torch.float32)
    plan = plan_for(model, [torch.arange(256) < 256 * share - (share == 1) for _ in range(2)])
    slim = surgery.slim(model, plan)
    of_slim = size.macs(slim) / size.macs(model)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        mend(slim, model, plan, how, lambda: iter(images.split(8)))
    tokens = model.get_parameter("pos_embed").shape[1]
    ffns, attentions = (Layer(tokens, 256, 64),) * 2, (Layer(tokens, 64, 64, 4, 16, 3),) * 2
    single, _ = formulas.refitting(Shape(ffns, attentions, 5, 0, 0, 0, 0.6), how, share, 40)
    passes = 2 * size.macs(model) * formulas.passes(how, of_slim, 40, 5, dense_kept=False)
    assert 0.8 < (passes + single) / counter.get_total_flops() < 1.4


def test_bytes_are_those_of_what_is_made(content: Made) -> None:
    """Sums, curves, and the dense model's streams, against a run's own."""
    recipe = Recipe.model_validate(content)
    pipeline.run(recipe, "discover")
    run = opened(content)
    shape, folder = Shape.of(run), run.folder.stage_folder("discover")
    files = [attention.file_of(run, "fisher-obs", None), folder / "fisher-obs-of-all.safetensors"]
    assert formulas.curves_bytes(shape, True) == pytest.approx(sum(f.stat().st_size for f in files), rel=0.5)
    of = CRITERIA["fisher-obs"].sums(True)
    assert of is not None
    x, y = next(run.images.batches(run.split.probe[:6], 6))
    made = of.sums(run.loaded.model, run.sites, lambda: iter([(x, y)]), classes=[0, 1], how=recipe.criterion.how("fisher-obs"),
                   first=None)  # fmt: skip
    held = sum(value.numel() * value.element_size() for value in made.values())
    assert formulas.sums_bytes(shape, True, True) == pytest.approx(held, rel=0.2)
    streams = DenseStreams()
    plan = plan_for(run.loaded.model, [torch.arange(64) < 32] * 2)
    slim = surgery.slim(run.loaded.model, plan)
    mend(slim, run.loaded.model, plan, "layerwise", lambda: iter([x]), streams=streams)
    assert formulas.streams_bytes(shape, 6) == sum(value.nbytes for value in streams.tensors.values())


def test_a_models_shape_is_read_from_it(content: Made) -> None:
    run = opened(content)
    shape = Shape.of(run)
    assert shape.ffns == (Layer(17, 64, 16),) * 2 and shape.outputs == 3 and shape.image_bytes == 4 * 28 * 28
    assert [(a.heads, a.dim, a.units, a.smaller) for a in shape.attentions] == [(2, 8, 16, 2)] * 2
    ffns = 2 * sum(p.numel() for name, p in run.loaded.model.named_parameters() if "mlp" in name and p.ndim == 2)
    assert shape.of_ffns == pytest.approx(17 * ffns / 2 / size.macs(run.loaded.model)) and ARGS["depth"] == 2
    assert len(families.ffn_sites(run.loaded.model)) == len(shape.ffns)


def test_images_are_counted_before_the_split_as_they_are_after(content: Made) -> None:
    for changed in ({}, {"classes": ["circle"]}, {"groups": {"a": ["circle", "cross"], "b": ["square", "cross"]}}):
        run = opened(content | changed)
        before = Images.of(run, 1)
        with Run.open(run.recipe, "cpu", Reporter(quiet=True)) as other:
            pipeline.advance(other, "split", force=True)
        run = opened(content | changed)
        assert Images.of(run, 1) == before and before.count == 60 and before.union.probe in (16, 48)


def test_the_models_of_an_exam_are_counted(content: Made) -> None:
    pipeline.run(Recipe.model_validate(content), "split")
    for changed in (
        {},
        {"baselines": []},
        {"recovery": "none"},
        {"random_draws": 3},
        {"criterion": {"name": "random"}},
    ):
        run = opened(content | changed)
        assert making.contenders(run.recipe, run.recovery) + 1 == len(exam._contenders(run, None))


def outline(**changed: Any) -> Outline:
    """A model of one FFN and one attention, 100 images of each of two classes, at the faked rates."""
    recipe = Recipe.model_validate(
        {
            "version": 1,
            "name": "x",
            "baselines": ["activation"],
            "criterion": {"probe_per_class": 30},
            "refit_images": 50,
        }
        | changed.pop("recipe", {})
    )
    shape = Shape((Layer(4, 8, 6),), (Layer(4, 6, 6, 2, 3, 0),), 2, 1000, 100, 1000, 0.5)
    every = Set(None, (80, 80), 40)
    found = (image_scores.Discovery("activation", recipe.criterion.how("activation"), 30, (50,)),)
    made = Outline(recipe, shape, Images(200, 40, True, (every,), every), FAKED, "layerwise", found, 1, 10)
    return replace(made, **changed)


def seconds(stage: Stage, name: str) -> float:
    return sum(work.seconds for work in stage.works if work.name == name)


def test_stages_by_hand() -> None:
    o = outline()
    assert scoring.split(o).works == (Work("reading images", 200 * 0.01),)
    found = scoring.discover(o)
    assert seconds(found, "activation") == 60 * 0.5 and seconds(found, "sums fisher-whole all") == 60 * 3.0
    heads = [8 / 3 * n**3 + 2 * n**2 * min(n, 6) for n in (3, 6)]
    roots = 16 * 6**3 * (1 + 3)
    assert seconds(found, "fisher-obs: elimination") == pytest.approx(
        (8 / 3 * 8**3 + 2 * 8**2 * 6 + sum(heads)) / 1e7 + roots / 1e8
    )
    assert scoring.moments(o).works == () and seconds(scoring.discover(o), "decoding") == 160 * 0.02
    single = 2 * 50 * 4 * (4 * (4 + 6) + 6 * (6 + 6) + 3 * (3 + 6))  # half of the units and of the dimensions is left
    double = 6 * sum(2 / 3 * p**3 + 4 * p**2 * 6 for p in (4, 6, 3))
    repair = 50 * 0.5 * (1.5 * 0.5 + 1) + single / 1e9 + double / 1e8
    assert seconds(making.prune(o), "repair") == pytest.approx(repair)
    kept = repair - 50 * 0.5  # the dense model does not run again
    rows = 2 * 2
    exams = (repair + 0 * kept) + 40 * 0.5 * (1 + rows * 0.5)
    assert seconds(making.evaluate(o), "exam") == pytest.approx(exams)
    three = making.evaluate(outline(recipe={"baselines": ["activation", "random"], "random_draws": 1}))
    assert seconds(three, "exam") == pytest.approx(repair + kept + 40 * 0.5 * (1 + 6 * 0.5))


def test_more_rounds_budgets_groups_images_and_t_cost_more() -> None:
    def total(**changed: Any) -> float:
        o = outline(**changed)
        return estimate.added({n: STAGES(o) for n, STAGES in estimate.STAGES.items()}, set(), o, 0.0).seconds

    plain = total()
    assert total(recipe={"budget": {"macs": [0.5, 0.25]}}) > plain
    assert total(recipe={"budget": {"loss_points": 1.0}}) > 3 * plain
    assert total(recipe={"refit_images": 150}) > plain and total(recipe={"criterion": {"probe_per_class": 60}}) > plain
    assert total(recipe={"keep": 0.5, "rounds": 3}) > total(recipe={"keep": 0.5})
    assert (
        total(recipe={"export": {"onnx": False}}) < plain < total(recipe={"export": {"precisions": ["fp32", "fp16"]}})
    )
    two = (Set("a", (80,), 20), Set("b", (80,), 20))
    assert total(images=Images(200, 40, True, two, Set(None, (80, 80), 40))) > plain
    activation = outline().discoveries[0]
    assert total(discoveries=(replace(activation, ts=(1, 5, 10)),)) == pytest.approx(plain + 2 * 60 * 0.5)


def test_workers_divide_what_has_parts_and_nothing_else() -> None:
    made = {"discover": Stage((Work("shared", 12.0, 3), Work("alone", 6.0)), 100.0, 5.0)}
    four = estimate.added(made, set(), outline(workers=4, rates=replace(FAKED, alone=2.0)), 10.0)
    assert four.stages["discover"] == Cost(12 / 3 + 6 / 2, 110.0, 5.0)
    two = estimate.added(made, set(), outline(workers=2, rates=replace(FAKED, alone=1.0)), 10.0)
    assert two.seconds == 12 / 2 + 6 and two.works == {"shared": 6.0, "alone": 6.0}
    assert estimate.added(made, {"discover"}, outline(), 10.0).stages["discover"] == Cost(0.0, 0.0, 0.0, True)


def test_the_share_that_is_left() -> None:
    o = outline()
    recipe = Recipe.model_validate({"version": 1, "name": "x", "keep": 0.25})
    assert left(recipe, o.shape, None, None) == 1 - 0.5 * 0.75 and left(recipe, o.shape, None, 4) == 1 - 0.5 * 0.5
    assert left(o.recipe, o.shape, o.budgets[0], None) == 0.5


@pytest.mark.usefixtures("faked")
def test_what_is_done_costs_nothing(content: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    quicken(monkeypatch)
    recipe = Recipe.model_validate(content)
    fresh = estimate.of_run(opened(content), "evaluate")
    assert all(not cost.done for cost in fresh.stages.values())
    pipeline.run(recipe, "discover")
    after = estimate.of_run(opened(content), "evaluate")
    assert [name for name, cost in after.stages.items() if cost.done] == ["split", "discover"]
    assert after.stages["evaluate"] == replace(fresh.stages["evaluate"], memory_mb=after.stages["evaluate"].memory_mb)
    changed = estimate.of_run(opened(content | {"criterion": {"probe_per_class": 7}}), "evaluate")
    assert [name for name, cost in changed.stages.items() if cost.done] == ["split"]
    pipeline.run(recipe, "evaluate")
    whole = estimate.of_run(opened(content), "evaluate")
    assert whole.seconds == 0 and all(cost.done for cost in whole.stages.values())
    assert telling.line(whole) == "cost: nothing is left to do"
    assert estimate.of_run(opened(content), "evaluate", force=True).seconds == pytest.approx(fresh.seconds)


@pytest.mark.usefixtures("faked")
def test_parts_of_interrupted_work_are_taken_off(content: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_scores, "SHARD", 8)
    monkeypatch.setattr(scoring, "SHARD", 8)
    content = content | {"criterion": {"name": "activation", "probe_per_class": 16}, "budget": {"macs": 0.5}}
    content = {**content, "keep": 0.5, "baselines": []}
    del content["budget"]
    monkeypatch.setattr("vitprune.pruning.repair.repair.chosen", lambda asked, model, whole=False: "none")
    pipeline.run(Recipe.model_validate(content), "split")
    run = opened(content)
    found = score.discoveries(run)[0]
    folder = image_scores.folder_of(run, image_scores.job(run, found, score._index(run, found)))
    before = done.undone(run, (found,), "none")[found.name(found.ts[0])]
    folder.mkdir(parents=True)
    count = len(image_scores.job(run, found, score._index(run, found)).items)
    for i in range(count // 2):
        (folder / f"{i:06d}.safetensors").touch()
    after = done.undone(opened(content), (found,), "none")[found.name(found.ts[0])]
    assert before == 1 and after == 1 - (count // 2) / count


@pytest.mark.parametrize(("fixed", "each", "most", "told"), [(0.1, 1.0, 6, 1.0 + 0.1 / 6), (0.0, 1e-3, 80, 1e-3)])
def test_a_rate_is_that_of_a_whole_batch(
    monkeypatch: pytest.MonkeyPatch, fixed: float, each: float, most: int, told: float
) -> None:
    """A call takes `fixed` seconds beside its items, by a clock that only the work moves; the first one more than that."""
    now, calls = [0.0], list[int]()

    def work(count: int) -> None:
        now[0] += fixed + each * count + (0.5 if not calls else 0.0)
        calls.append(count)

    monkeypatch.setattr(rates.time, "perf_counter", lambda: now[0])
    assert rates.timed(work, most) == pytest.approx(told) and sum(calls) < 300


@pytest.mark.parametrize("once", [0.0, 0.4])
def test_a_rate_of_sums_is_without_what_is_done_once(monkeypatch: pytest.MonkeyPatch, once: float) -> None:
    """`once` seconds a call, a quarter of a second a batch and a fiftieth an item, by a clock that only the work moves."""
    now, most = [0.0], [0]

    def work(count: int, batches: int) -> None:
        now[0] += once + batches * (0.25 + 0.02 * count)
        most.append(count * batches)

    monkeypatch.setattr(rates.time, "perf_counter", lambda: now[0])
    assert rates.in_batches(work, 32) == pytest.approx(0.02 + 0.25 / 32) and max(most) <= 4


def test_rates_are_measured_and_leave_nothing_behind(content: Made, tmp_path: Path) -> None:
    run = opened(content | {"paper_protocol": {"t": [1, 2], "nodes": 4, "probe_per_class": 2}})
    torch.set_num_threads(2)
    before = {name: value.clone() for name, value in run.loaded.model.state_dict().items()}
    run.workers = 2
    found = estimate.outline(run).rates
    assert torch.get_num_threads() == 2
    assert all(torch.equal(value, before[name]) for name, value in run.loaded.model.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in run.loaded.model.parameters())
    assert set(found.criteria) == {"activation", "jas cls", "sums fisher-whole"}
    assert min(found.criteria.values()) > 0 and min(found.read, found.prepare, found.forward, found.gradient) > 0
    assert min(found.product, found.double, found.eliminated) > 1e6 and found.alone >= 1
    assert not (tmp_path / "out").exists()


def test_a_run_that_was_estimated_is_the_run_without(
    content: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is measured: digests and results are the same."""
    quicken(monkeypatch)
    runs = []
    for name, speed in (("slow", 1.0), ("not", None)):
        asked = Recipe.model_validate(content | {"out": str(tmp_path / name)})
        found = FAKED.criteria | {"activation": 2.0}
        scaled = replace(FAKED, forward=speed, read=speed, criteria=found) if speed else FAKED
        if speed:
            monkeypatch.setattr(rates, "measured", lambda run, asked, made=scaled: made)

        def before(run: Run) -> None:
            telling.tell(run, lambda: estimate.of_run(run), 1e9, False, None)

        pipeline.run(asked, "evaluate", before=before if speed else None)
        folder = tmp_path / name / "tiny"
        inputs = {f.parent.name: Run.join(asked, "cpu", Reporter(quiet=True)).folder.record(f.parent.name) for f in
                  folder.glob("stages/*/stage.json")}  # fmt: skip
        files = {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*.safetensors")}
        rows = (folder / "stages/evaluate/rows.json").read_bytes()
        runs.append(
            ({name: made and (made["inputs"], made["files"].keys()) for name, made in inputs.items()}, files, rows)
        )
    assert runs[0] == runs[1] and len(runs[0][1]) > 4


def faked_estimate(hours: float) -> Estimate:
    costs = {"discover": Cost(3600 * hours * 0.8, 2000, 10), "evaluate": Cost(3600 * hours * 0.2, 900, 1)}
    return Estimate(costs, {"jas": 3600 * hours * 0.8, "exam": 3600 * hours * 0.2})


def test_above_the_limit_a_run_is_refused_off_a_terminal(
    content: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_recipe(tmp_path / "r.yaml", content | {"baselines": ["jas", "random"]})
    monkeypatch.setattr(estimate, "of_run", lambda *args: faked_estimate(30))
    begun: list[str] = []
    monkeypatch.setattr(pipeline, "advance", lambda run, verb, force: begun.append(verb) or ({}, []))
    refused = CliRunner().invoke(app, ["run", str(path)])
    assert isinstance(refused.exception, UserError) and not begun
    said = str(refused.exception)
    assert (
        "30.0 h" in said and "--max-hours 12" in said and "`discover`" in said and "--yes" in said and "\n" not in said
    )
    assert "`baselines` without `jas`" in said and "--workers" in said
    for allowed in (["--yes"], ["--max-hours", "31"]):
        CliRunner().invoke(app, ["discover", str(path), *allowed])
    assert begun == ["discover", "discover"]
    assert isinstance(CliRunner().invoke(app, ["prune", str(path), "--max-hours", "29"]).exception, UserError)
    monkeypatch.setattr(estimate, "of_run", lambda *args: faked_estimate(11.9))
    CliRunner().invoke(app, ["run", str(path)])
    assert begun == ["discover", "discover", "run"]


def test_on_a_terminal_it_asks(content: Made) -> None:
    run, asked = opened(content), list[str]()

    def answer(given: bool) -> Callable[[str], bool]:
        return lambda text: asked.append(text) or given  # type: ignore[func-returns-value]

    telling.hold(faked_estimate(13), run, None, False, answer(True))
    with pytest.raises(UserError, match="not begun"):
        telling.hold(faked_estimate(13), run, None, False, answer(False))
    assert len(asked) == 2 and "13.0 h" in asked[0] and asked[0].endswith("Go on?")
    run.device = torch.device("cuda")
    telling.hold(faked_estimate(1000), run, None, False, None)
    with pytest.raises(UserError, match="--yes"):
        telling.hold(faked_estimate(1000), run, 10, False, None)


def test_an_estimate_that_cannot_be_made_stops_nothing(content: Made, capsys: pytest.CaptureFixture[str]) -> None:
    run = opened(content)
    run.reporter = Reporter()

    def broken() -> Estimate:
        raise RuntimeError("no such thing")

    telling.tell(run, broken, None, False, None)
    assert "cost: not estimated (no such thing)" in capsys.readouterr().err


def test_the_line_before_a_run() -> None:
    assert telling.line(faked_estimate(1)) == (
        "cost: about 60 min, 2.0 GB of memory, 11 MB of disk: discover 48 min, evaluate 12 min"
    )
    spelled = [telling.duration(s) for s in (0.2, 89, 90, 5399, 5400, 172799, 12 * 86400)]
    assert spelled == ["1 s", "89 s", "2 min", "90 min", "1.5 h", "48.0 h", "12 days"]


@pytest.mark.usefixtures("faked")
def test_comparisons_and_tables_are_estimated(content: Made) -> None:
    compared = content | {"keep": 0.5, "compare": {"criteria": ["jas", "activation", "random"], "seeds": [0, 1]}}
    del compared["budget"]
    told: list[Estimate] = []
    for seeds in ([0], [0, 1]):
        spec = Compare.model_validate({"criteria": ["jas", "activation", "random"], "seeds": seeds})
        asked = Recipe.model_validate(compared | {"compare": spec.model_dump(exclude_none=True)})
        first = compare.part(*compare.asked(asked)[:2], ["jas", "activation", "random"], 0)
        with contextlib.closing(Run.join(first, "cpu", Reporter(quiet=True))) as run:
            told.append(estimate.of_compare(run, spec))
    assert told[1].seconds == pytest.approx(2 * told[0].seconds) and told[0].stages["cells"].seconds > 0
    table = Recipe.model_validate(compared | {"paper": {"table": "table-1", "criteria": ["jas", "activation"]}})
    assert table.paper is not None
    with contextlib.closing(Run.join(tables.first(table), "cpu", Reporter(quiet=True))) as run:
        assert estimate.of_paper(run, table.paper).stages["table"].seconds > 0


@pytest.mark.parametrize("verb", ["compare", "paper"])
def test_comparisons_and_tables_are_refused_too(
    content: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    more = {"compare": {"criteria": ["jas", "random"]}, "paper": {"table": "table-1", "criteria": ["jas"]}}
    path = write_recipe(tmp_path / "r.yaml", {k: v for k, v in content.items() if k != "budget"} | {"keep": 0.5} | more)
    for name in ("of_compare", "of_paper"):
        monkeypatch.setattr(estimate, name, lambda *args: faked_estimate(30))
    done = CliRunner().invoke(app, [verb, str(path)])
    assert isinstance(done.exception, UserError) and "--yes" in str(done.exception)
    assert "a few batches are timed" in done.stderr.splitlines()[0] and not (tmp_path / "out").exists()


def test_the_paths_of_several_t_share_what_they_have_in_common(content: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """One job for all t of the protocol; the clean pass and the first block are made once an image."""
    recipe = Recipe.model_validate(
        {**content, "criterion": {"name": "fisher-obs", "probe_per_class": 2}, "baselines": []}
        | {"paper_protocol": {"t": [1, 5, 10], "nodes": 3, "probe_per_class": 4}, "keep": 0.5, "budget": None}
        | {"budget": "flops"}
    )
    first, followed = list[int](), list[int]()
    begin, follow = jas._Engine.first, jas._Engine.follow
    monkeypatch.setattr(jas._Engine, "first", lambda self, x: first.append(len(x)) or begin(self, x))
    monkeypatch.setattr(jas._Engine, "follow", lambda self, s, t, p: followed.append(t) or follow(self, s, t, p))
    pipeline.run(recipe, "discover")
    assert sum(first) == 3 * 4 and sorted(set(followed)) == [1, 5, 10]
    run = opened(recipe.model_dump(mode="json", exclude_none=True) | {"out": str(recipe.out)})
    protocol = [found for found in score.discoveries(run) if found.criterion == "jas"]
    assert [found.ts for found in protocol] == [(1, 5, 10)]


# ---- a look at the units


@pytest.mark.usefixtures("faked")
def test_a_look_at_the_units_is_a_stage_of_its_own(content: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told for a recipe that asks for it, costs nothing once it is there, and something again for another look."""
    quicken(monkeypatch)
    content = content | {"export": {"onnx": False}, "baselines": [], "recovery": "affine", "keep": 0.5}
    del content["budget"]
    assert "see" not in estimate.of_run(opened(content)).stages
    content |= {"see": {"images": {"per_class": 4}}}
    before = estimate.of_run(opened(content))
    assert list(before.stages)[-2:] == ["see", "report"] and before.stages["see"].seconds > 0
    pipeline.run(Recipe.model_validate(content), "run", device="cpu")
    assert estimate.of_run(opened(content)).stages["see"].done
    after = estimate.of_run(opened(content | {"see": {"images": {"per_class": 5}}}))
    assert [name for name, cost in after.stages.items() if not cost.done] == ["see", "report"]


def test_what_a_look_costs_by_hand() -> None:
    rates_of = {"see units": 0.5, "see drift": 0.25, "sums hidden": 0.125}
    see = {"images": {"per_class": 3}, "parts": ["exemplars", "drift"]}
    o = outline(recipe={"see": see, "keep": 0.5}, rates=replace(FAKED, criteria=FAKED.criteria | rates_of))
    found = seeing.see(replace(o, recipe=o.recipe))
    share = left(o.recipe, o.shape, None, None)
    assert seconds(found, "see units") == 6 * 0.5 and seconds(found, "see twins") == 6 * 0.125
    assert seconds(found, "see drift") == pytest.approx(6 * 0.25 * (1 + share) / 2 + 6 * 0.5)
    plain = sum(work.seconds for work in found.works)
    for more in ("maps", "masks", "blocks", "readout", "names", "stimuli", "alignment"):
        wider = outline(recipe={"see": see | {"parts": [*see["parts"], more]}, "keep": 0.5}, rates=o.rates)
        assert sum(work.seconds for work in seeing.see(wider).works) > plain, more
    assert seeing.see(outline()).works == ()


def test_a_look_is_timed_and_leaves_nothing_behind(content: Made, tmp_path: Path) -> None:
    run = opened(content | {"see": {"sites": ["ffn", "attention"], "exemplars": {"k": 3, "random": 2}}})
    found = estimate.outline(run).rates.criteria
    assert {"see units", "see attention", "see drift", "sums hidden"} <= found.keys() and min(found.values()) > 0
    assert all(p.grad is None for p in run.loaded.model.parameters()) and not (tmp_path / "out").exists()
