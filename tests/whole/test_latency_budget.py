"""`budget: {latency: …}`: a table of measured shapes, and a whole model measured to be within; the clock is made up."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from small import image_folder, model_folder, quicken, recipe_dict, tiny_model
from torch import nn

import vitprune
from vitprune.api.slimming import _curves
from vitprune.core.errors import UserError
from vitprune.core.reading import Json, read_sealed
from vitprune.deploy import runtime
from vitprune.deploy.onnx import exporting, pieces
from vitprune.deploy.stopwatch import Stopwatch
from vitprune.model import families, size
from vitprune.model.sites.attention import attention_sites
from vitprune.pruning import surgery
from vitprune.pruning.plan import Plan
from vitprune.pruning.whole import latency, timed
from vitprune.pruning.whole.timed import Timed
from vitprune.recipe.recipe import Recipe
from vitprune.runs import pipeline
from vitprune.runs.results import budgets


class Fake:
    """A clock by the number of weights, bent, so that a sum of parts is not the whole."""

    def __init__(
        self,
        bend: Callable[[float], float] = lambda share: 0.1 + 0.9 * share**0.7,
        cpu: str = "one",
        shortcut: bool = False,
    ) -> None:
        self.bend, self.cpu, self.shortcut, self.asked = bend, cpu, shortcut, list[str]()

    def facts(self) -> Json:
        return {"cpu": self.cpu}

    def pieces(self, made: Sequence[Callable[[], bytes]]) -> list[float]:
        self.asked.append("pieces")
        graphs = [onnx.load_model_from_string(graph()).graph for graph in made]
        return [float(sum(np.prod(weight.dims) for weight in graph.initializer)) for graph in graphs]

    def dense(self, model: nn.Module) -> float:
        self.asked.append("dense")
        return 1.2 * size.parameters(model)

    def ratio(self, dense: nn.Module, slim: nn.Module) -> float:
        self.asked.append("ratio")
        return self.bend(size.parameters(slim) / size.parameters(dense))


class Costs:
    """A tiny model of many small sites, with what they cost."""

    def __init__(self) -> None:
        self.model = tiny_model(depth=6, mlp_ratio=8)
        images = torch.randn(40, 1, 28, 28, generator=torch.Generator().manual_seed(0))
        self.scores = vitprune.discover(self.model, images, torch.arange(40) % 3, criterion="fisher-obs")
        self.curves = _curves(self.model, families.ffn_sites(self.model), attention_sites(self.model), [images], None)

    def plan(self, clock: Fake, amount: float, path: Path, **options: Any) -> Plan:
        return timed.plan(Timed(self.model, clock, path, print), self.scores, self.curves, amount, **options)

    def share(self, clock: Fake, plan: Plan) -> float:
        return clock.ratio(self.model, surgery.slim(self.model, plan))


@pytest.fixture(scope="module", name="costs")
def costs_of_a_tiny_model() -> Costs:
    return Costs()


BENDS: dict[str, Callable[[float], float]] = {
    "straight": lambda share: share,
    "above": lambda share: 0.1 + 0.9 * share**0.7,
    "below": lambda share: share**2,
    "far below": lambda share: 0.2 * share + 0.8 * share**8,
}


@pytest.mark.parametrize("amount", [0.6, 0.75, 0.95])
@pytest.mark.parametrize("bend", BENDS)
def test_the_measured_share_is_just_within_the_budget(costs: Costs, tmp_path: Path, bend: str, amount: float) -> None:
    clock = Fake(BENDS[bend])
    made = costs.plan(clock, amount, tmp_path / "table.json")
    measured = clock.asked.count("ratio")
    assert timed.NEAR * amount <= costs.share(clock, made) <= amount
    assert clock.asked.count("pieces") == clock.asked.count("dense") == 1 and measured <= timed.ROUNDS


def test_where_nothing_comes_near_what_is_within_is_taken(costs: Costs, tmp_path: Path) -> None:
    clock = Fake(lambda share: 0.5 * share + 0.5 * (share > 0.9))
    assert 0.3 < costs.share(clock, costs.plan(clock, 0.7, tmp_path / "table.json")) <= 0.45


def test_all_of_the_time_is_the_dense_model(costs: Costs, tmp_path: Path) -> None:
    clock = Fake()
    assert costs.share(clock, costs.plan(clock, 1.0, tmp_path / "table.json")) == 1.0


def test_what_no_model_can_keep_is_refused(costs: Costs, tmp_path: Path) -> None:
    clock = Fake()
    with pytest.raises(UserError, match=r"budget: latency: 0.2 is below .* time, 0\.\d+; raise it") as told:
        costs.plan(clock, 0.2, tmp_path / "table.json")
    least = float(str(told.value).split("time, ")[1].split(";")[0])
    assert costs.share(clock, costs.plan(clock, least, tmp_path / "table.json")) <= least


def test_what_was_measured_is_kept_and_gives_the_same_plan(costs: Costs, tmp_path: Path) -> None:
    path, clock, again = tmp_path / "table.json", Fake(), Fake()
    first = costs.plan(clock, 0.7, path)
    kept = path.read_bytes()
    assert timed.sizes_of(costs.plan(again, 0.7, path)) == timed.sizes_of(first)
    assert not again.asked and path.read_bytes() == kept
    costs.plan(again, 0.9, path)  # another budget: the same table, other models
    assert set(again.asked) == {"ratio"}
    read = read_sealed(path)
    assert read is not None and len(read["ratios"]) == len(clock.asked) - 2 + len(again.asked)


def test_a_table_of_another_machine_or_a_damaged_one_is_measured_again(costs: Costs, tmp_path: Path) -> None:
    path, other = tmp_path / "table.json", Fake(cpu="another")
    costs.plan(Fake(), 0.7, path)
    costs.plan(other, 0.7, path)
    assert {"pieces", "dense", "ratio"} == set(other.asked)
    path.write_text(path.read_text().replace("another", "one"))
    costs.plan(after := Fake(), 0.7, path)
    assert {"pieces", "dense", "ratio"} == set(after.asked)


def test_prices_lie_between_what_was_measured_and_never_fall(costs: Costs, tmp_path: Path) -> None:
    model = costs.model
    prices = Timed(model, Fake(), tmp_path / "table.json", print).prices
    for site in attention_sites(model):
        kind = prices.kinds[site.name]
        times, (heads, dims) = prices.table.kinds[latency.name_of(kind)], kind.grid
        for i, h in enumerate(heads):
            assert [prices.attention(site, h, d) for d in dims] == pytest.approx(times[i].tolist())
        half = [prices.attention(site, heads[0], d) for d in dims]
        assert prices.attention(site, heads[0], (dims[0] + dims[1]) // 2) == pytest.approx((half[0] + half[1]) / 2)
    for ffn in families.ffn_sites(model):
        found = prices.ffn(ffn, np.arange(1, ffn.size + 1))
        assert (np.diff(found) >= 0).all() and len(set(found.tolist())) == ffn.size // latency.STEP
    sites = prices.total - sum(
        prices.attention(a, a.heads, a.dim) + prices.ffn(f, np.array([f.size]))[0]
        for a, f in zip(attention_sites(model), families.ffn_sites(model), strict=True)
    )
    assert sites > 0


def test_the_last_block_for_one_token_costs_what_it_takes_and_the_dense_model_does_not(
    costs: Costs, tmp_path: Path
) -> None:
    plain = Timed(costs.model, Fake(), tmp_path / "plain.json", print).prices
    clock = Fake(shortcut=True)
    short = Timed(costs.model, clock, tmp_path / "short.json", print).prices
    assert {kind.read for kind in short.kinds.values()} == {1, 17}
    assert [name for name, kind in short.kinds.items() if kind.read == 1] == ["blocks.5.mlp", "blocks.5.attn"]
    assert short.dense == pytest.approx(plain.dense) == plain.total
    assert len(short.table.kinds) == 2 * len(plain.table.kinds)
    made = costs.plan(clock, 0.7, tmp_path / "short.json")
    assert timed.NEAR * 0.7 <= costs.share(clock, made) <= 0.7


def test_a_disturbed_measurement_costs_its_own_size_alone() -> None:
    quiet = np.outer([1.0, 2.0, 3.0], [1.0, 2.0, 4.0])
    disturbed = quiet + np.array([[0, 9, 0], [7, 0, 0], [0, 0, 0]])
    made = latency._monotone(disturbed)
    assert (np.diff(made, axis=0) >= 0).all() and (np.diff(made, axis=1) >= 0).all()
    assert (quiet <= made).all() and (made <= disturbed).all() and np.abs(made - quiet).sum() <= 4


def test_the_grid_has_the_ends_and_few_sizes() -> None:
    assert latency.spread(range(1, 13), 4) == (1, 5, 8, 12) and latency.spread((4, 8), 8) == (4, 8)
    assert latency.spread((7,), 5) == (7,)


def counts(graph: bytes) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load_model_from_string(graph).graph.node)


def test_pieces_are_what_the_exporter_writes(tmp_path: Path) -> None:
    """A block more in a model is an attention, an FFN, two norms and two sums more in its file."""
    found = []
    for depth in (1, 2):
        exporting.export(tiny_model(depth=depth), tmp_path / f"{depth}.onnx", {})
        found.append(Counter(node.op_type for node in onnx.load(tmp_path / f"{depth}.onnx").graph.node))
    block = counts(pieces.attention(16, 17, 17, 2, 8)) + counts(pieces.ffn(16, 17, 17, 64))
    assert found[1] - found[0] == block + Counter(LayerNormalization=2, Add=2)


@pytest.mark.parametrize(
    "graph",
    [
        pieces.attention(16, 9, 9, 1, 4),
        pieces.attention(16, 9, 1, 2, 8),
        pieces.ffn(16, 9, 9, 5),
        pieces.ffn(16, 9, 1, 5, 2, True, "silu"),
    ],
)
def test_every_piece_runs_at_its_shape(graph: bytes) -> None:
    onnx.checker.check_model(graph, full_check=True)
    found = runtime.predict(runtime.session(graph), np.ones((3, 9, 16), np.float32))
    assert found.shape in ((3, 9, 16), (3, 1, 16)) and np.isfinite(found).all() and np.ptp(found) > 0


@pytest.fixture(scope="module", name="content")
def small_recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("latency")
    made = recipe_dict(model_folder(folder / "model"), image_folder(folder / "images", 20), folder / "out")
    del made["keep"]
    return made | {"criterion": {"probe_per_class": 100}, "baselines": [], "budget": {"latency": 0.7}}


def run(content: dict[str, Any], out: Path, clock: Fake, force: bool = False, **changed: Any) -> list[int]:
    """The batches that a run with this clock was to time."""
    batches: list[int] = []

    def files(watch: Stopwatch, *_: object) -> Fake:
        batches.append(watch.batch)
        return clock

    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        patch.setattr(budgets, "Files", files)
        pipeline.run(Recipe.model_validate({**content, "out": str(out), **changed}), "prune", force=force)
    return batches


def test_a_run_measures_once_and_keeps_it_beside(content: dict[str, Any], tmp_path: Path) -> None:
    clock, folder = Fake(), tmp_path / "tiny"
    assert run(content, tmp_path, clock, export={"onnx": False, "latency_batches": [1, 8]}) == [8]
    share = clock.ratio(tiny_model(), vitprune.load(folder))
    assert timed.NEAR * 0.7 <= share <= 0.7
    assert json.loads((folder / "config.json").read_text())["vitprune"]["budget"] == {"latency": 0.7}
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "stages" / "prune" / "stage.json").unlink()  # as if it had been stopped
    run(content, tmp_path, again := Fake(), export={"onnx": False, "latency_batches": [1, 8]})
    assert not again.asked and (folder / "model.safetensors").read_bytes() == weights
    run(content, tmp_path, forced := Fake(), force=True, export={"onnx": False, "latency_batches": [1, 8]})
    assert "pieces" in forced.asked


@pytest.mark.slow
def test_a_real_clock_measures_and_keeps(content: dict[str, Any], tmp_path: Path) -> None:
    """Only what no load of the machine can change: the figures are somebody else's."""
    export = {"onnx": True, "latency_batches": [2]}
    recipe = Recipe.model_validate({**content, "out": str(tmp_path), "budget": {"latency": 0.97}, "export": export})
    pipeline.run(recipe, "prune")
    read = read_sealed(tmp_path / "tiny" / "stages" / "latency" / "table.json")
    assert read is not None and read["of"]["batch"] == 2 and read["dense_ms"] > 0
    assert any(ratio <= 0.97 for ratio in read["ratios"].values())
