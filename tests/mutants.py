"""Small faults that would each break a promise, and whether the promise's own tests notice: `make mutants`.

Each is put into a copy of the source, alone; then the tests that docs/promises.md names for its promise run, and nothing
else. A fault that they let pass is a promise that nothing guards. Usage: python tests/mutants.py [--only N] [--jobs J]
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROMISES = ROOT / "docs" / "promises.md"
NEEDED = ("vitprune", "tests", "recipes", "docs", "benchmarks", "pyproject.toml", "mkdocs.yml", "README.md", "Makefile")
LIMIT = 900  # seconds for the tests of one promise


@dataclass(frozen=True, slots=True)
class Mutant:
    """A fault: in `file`, `old` (which stands there once) becomes `new`; `tests` belong to the promise it breaks."""

    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


READS = ("test_honest.py::test_nothing_before_the_exam_reads_the_test_split",)
TOWERS = ("test_towers.py::test_a_tower_gives_the_features_that_transformers_gives",)
EXPORTS = ("test_honest.py::test_what_the_export_makes_is_made_without_the_test_split",)
AGREES = ("test_honest.py::test_an_onnx_file_that_is_wrong_on_one_image_fails_its_check",)
FIGURES = ("test_honest.py::test_the_figures_are_those_of_the_written_folder",)
REDONE = ("test_digests.py::test_another_value_does_again_what_depends_on_it",)
HASHED = ("test_digests.py::test_the_recipes_hash_in_a_result_follows_what_the_model_depends_on",)
CONTENT = ("test_digests.py::test_another_model_and_other_images_do_everything_again",)
PIXELS = ("test_digests.py::test_other_pixels_and_other_weights_are_noticed",)
USES = ("test_digests.py::test_a_criterion_names_every_setting_that_changes_it",)
DRAWS = ("test_honest.py::test_every_random_draw_is_its_own",)
PAIRED = (
    "test_compare.py::test_mcnemar_is_the_exact_binomial_test",
    "test_report_parts.py::test_the_significance_of_a_row_is_that_of_its_images",
)
SPECIALIST = (
    "test_honest.py::test_a_specialist_is_examined_on_its_own_head",
    "test_groups.py::test_figures_by_hand",
)
DIRECTIONS = (
    "test_directions.py::test_the_metric_is_that_of_random_directions",
    "test_directions.py::test_directions_hang_on_the_image_alone",
)
FEATURES = ("test_features.py::test_cosines_errors_and_variance_unexplained",)
ORACLE = (
    "test_report.py::test_oracle_rows_stay_out_of_the_honest_table",
    "test_honest.py::test_oracle_rows_stay_out_of_the_honest_ones",
)
RATIO = ("test_honest.py::test_a_slower_slim_file_has_a_ratio_above_one", "test_bench.py::test_drift_cancels")
SLIM = ("test_surgery.py::test_slim_equals_masked",)
GATED = ("test_gated.py::test_a_slim_ffn_is_the_sum_over_its_kept_units",)
BEST = ("test_paths_masks.py::test_random_tables_against_plain_sorting",)
SHARE = ("test_paths_masks.py::test_a_ratio_is_rounded_down_and_never_above_the_budget",)
AFFINE = ("test_recovery.py::test_affine_ridge_is_the_formula",)
LAYERS = ("test_sequential.py::test_every_layer_is_the_least_squares_fit_of_what_it_sees",)
PREPARED = ("test_predict.py::test_the_logits_are_those_of_timm_and_torch", "test_preprocess.py::test_every_crop_mode")
NAMES = ("test_honest.py::test_predict_names_what_the_model_says",)
CLASSES = ("test_data.py::test_classes_are_matched_to_outputs_by_name",)
PARTS = (
    "test_pipeline.py::test_a_damaged_shard_is_computed_again",
    "test_digests.py::test_the_parts_of_a_discovery_are_of_exactly_its_job",
)
UNPICKLED = (
    "test_checkpoint.py::test_a_pickle_in_place_of_the_weights_is_not_opened",
    "test_checkpoint.py::test_a_checkpoint_that_does_not_fit",
    "test_no_code.py::test_weights_are_not_unpickled",
    "test_no_code.py::test_files_of_a_finished_run_are_not_unpickled",
)

LITTLE = ("test_evaluation.py::test_parts_of_the_logits_leave_no_trace",)
KEPT = (
    "test_results.py::test_what_is_read_is_what_the_whole_sums_give_to_the_bit",
    "test_results.py::test_counts_are_as_small_as_the_images_allow",
)
SEALED = ("test_results.py::test_a_byte_that_changed_is_seen_when_it_is_read",)
ASKED = ("test_results.py::test_only_what_is_asked_for_is_read",)
HELD = (
    "test_held.py::test_a_giant_on_a_card_of_16_gb_and_on_one_that_is_too_small",
    "test_held.py::test_the_figure_is_that_of_the_sums_themselves",
)

MUTANTS = (
    # ---- backbones
    Mutant("directions are alike for every image", "criteria/sampling.py", "zlib.crc32(image.numpy().tobytes(), seed) for image in images.cpu().contiguous()]\n    drawn",
           "seed for image in images]\n    drawn", DIRECTIONS),
    Mutant("the class token's direction is a token's among others", "criteria/sampling.py", "out.weight**0.5 *", "1.0 *", DIRECTIONS),
    Mutant("the class token is one row of the last block", "model/tokens.py", "torch.arange(2 - count, count).clamp_min(0)", "torch.arange(count)",
           ("test_directions.py::test_the_rows_of_the_output_are_what_the_last_block_counts",)),
    Mutant("errors of patches count registers and class token too", "exam/features.py", '"tokens": (dense.tokens[:, prefix:], slim.tokens[:, prefix:], spread.patches)',
           '"tokens": (dense.tokens, slim.tokens, spread.patches)', FEATURES),
    Mutant("an image is its own neighbour", "exam/features.py", "alike[own, start + own] = -torch.inf", "pass",
           ("test_features.py::test_neighbours_overlap",)),
    Mutant("a head that was put on is not seen", "model/inside/reads.py", "if any(next(head.parameters(), None) is not None for head in heads) and not", "if False and not",
           ("test_backbone.py::test_a_head_that_was_put_on_makes_a_classifier",)),
    Mutant("jas is let through for a backbone", "recipe/check.py", "if name not in OF_BACKBONES:", "if False:",
           ("test_backbones.py::test_what_needs_a_classifier_is_refused_by_name",)),
    # ---- who reads the test split
    Mutant("fisher-obs reads the test split", "runs/stages/score.py", "default_rng(c.seed).permutation(index)",
           "default_rng(c.seed).permutation(np.concatenate([index, run.split.test]))", READS),
    Mutant("jas reads the test split", "runs/stages/score.py",
           "return split.first_per_class(probe, run.source.class_of, found.per_class)",
           "return np.append(split.first_per_class(probe, run.source.class_of, found.per_class), "
           "run.split.test[:1])", READS),
    Mutant("the repair layer by layer reads the test split", "runs/stages/moments.py",
           "return np.random.default_rng(run.split.seed).permutation(index)[:most]",
           "return np.append(np.random.default_rng(run.split.seed).permutation(index)[:most], run.split.test)",
           READS),
    Mutant("the moments of the affine repair read the test split", "runs/stages/moments.py",
           "index = probe[np.isin(probe, refit_index(run, targets))]",
           "index = np.append(refit_index(run, targets), run.split.test[-1:])", READS),
    Mutant("auto's fold is made of every image", "runs/choose.py",
           "outside = np.setdiff1d(np.arange(len(run.source.names)), run.split.probe)",
           "outside = np.zeros(0, np.int64)", READS),
    Mutant("a later round reads the test split", "runs/stages/prune.py",
           "inner = run.inside(folder, recipe, model=slim,", "inner = run.inside(folder, recipe, model=slim, split={**run.split_record, "
           '"probe": run.split_record["probe"] + run.split_record["test"], "test": []},', READS),
    Mutant("groups by similarity read the test split", "runs/grouping.py", "record = run.split_record\n",
           'record = run.split_record | {"probe": run.split_record["probe"] + run.split_record["test"], '
           '"test": []}\n', READS),
    Mutant("masked = sliced is tried on test images", "runs/stages/prune.py", "[:16]\n    x, _", "[:15]\n    index = np.append("
           "index, run.split.test[:1])\n    x, _", READS),
    Mutant("int8 is calibrated on test images", "runs/stages/export.py", "calibration, judging = two_parts(probe,",
           "calibration, judging = two_parts(run.split.test,", EXPORTS),
    Mutant("a specialist's threshold is set on test images", "runs/stages/export.py",
           "index = probe[np.isin(run.images.labels[probe], targets)]\n    ask",
           "index = run.split.test\n    ask", EXPORTS),
    Mutant("the exam leaves the last image out", "exam/logits.py",
           "return split.test if only is None else split.test[np.isin(images.labels[split.test], only)]",
           "return split.test[:-1] if only is None else split.test[np.isin(images.labels[split.test], only)][:-1]", READS),
    Mutant("the split leaves an image in both parts", "images/split.py",
           "return Split(seed, probe, np.concatenate(probes), np.concatenate(tests))",
           "return Split(seed, probe, np.concatenate(probes), np.concatenate([*tests, probes[0][:1]]))",
           ("test_data.py::test_the_split_is_per_class_and_disjoint_and_complete",)),
    Mutant("an overlapping split is let be", "images/split.py", 'raise ValueError("probe and test share images")', "return",
           ("test_data.py::test_an_overlapping_split_cannot_be_made",)),
    Mutant("given parts may share an image", "images/split.py", "    _refuse_overlap(source, contents)\n    kept", "    kept",
           ("test_given_split.py::test_an_image_in_both_is_refused_with_its_two_names",
            "test_given_split.py::test_the_same_pixels_in_another_file_are_the_same_image")),
    # ---- the figures
    Mutant("ONNX is compared on a first batch only", "runs/stages/export.py", "    hit = onnx_logits.argmax(1) ==",
           "    onnx_logits[2:] = torch_logits[2:]\n    hit = onnx_logits.argmax(1) ==", AGREES),
    Mutant("ONNX is compared on all but the last image", "runs/stages/export.py", "    hit = onnx_logits.argmax(1) ==",
           "    onnx_logits[-1:] = torch_logits[-1:]\n    hit = onnx_logits.argmax(1) ==", AGREES),
    Mutant("labels are matched by order", "runs/state/run.py", "loaded.transform(), channels, outputs,",
           "loaded.transform(), channels, np.sort(outputs),", FIGURES),
    Mutant("a class is matched to its neighbour", "images/class_names.py", "return np.array(outputs, np.int64)",
           "return np.roll(np.array(outputs, np.int64), 1)", CLASSES),
    Mutant("top-1 along the wrong axis", "exam/metrics.py", "hit = hits(logits, labels, head)",
           "hit = np.resize(logits.argmax(0), len(labels)) == labels",
           ("test_evaluation.py::test_metrics_are_those_of_a_loop",)),
    Mutant("the probability is of the predicted class", "exam/metrics.py",
           "shifted[np.arange(len(labels)), labels]", "shifted.max(1)", FIGURES),
    Mutant("the interval is drawn anew each time", "exam/metrics.py", "generator, step = np.random.default_rng(seed)",
           "generator, step = np.random.default_rng()", ("test_evaluation.py::test_the_interval",)),
    Mutant("the interval is of half the images", "exam/metrics.py", "(size, len(hit))",
           "(size, max(1, len(hit) // 2))", ("test_evaluation.py::test_the_interval",)),
    Mutant("a group's figures are of every class's images", "runs/contenders.py", "run.batching.batch, np.array(targets)",
           "run.batching.batch, None", FIGURES),
    Mutant("McNemar on unpaired counts", "exam/metrics.py",
           "only, not_only = int((one & ~other).sum()), int((other & ~one).sum())",
           "only, not_only = int(one.sum()), int(other.sum())", PAIRED),
    Mutant("McNemar one-sided", "exam/metrics.py", "binomtest(only, only + not_only)",
           'binomtest(only, only + not_only, alternative="greater")', PAIRED),
    Mutant("parameters are those of the dense model", "runs/contenders.py", "costs = made.costs",
           "costs = size.parameters(run.loaded.model), made.costs[1]", FIGURES),
    Mutant("multiply-adds are those of the dense model", "runs/contenders.py", "costs = made.costs",
           "costs = made.costs[0], size.macs(run.loaded.model)", FIGURES),
    Mutant("multiply-adds are counted twice", "model/size.py", "counter.get_total_flops() // 2",
           "counter.get_total_flops()", ("test_evaluation.py::test_macs_by_hand",)),
    Mutant("parameters leave the biases out", "model/size.py", "sum(p.numel() for p in model.parameters())",
           "sum(p.numel() for p in model.parameters() if p.ndim > 1)", FIGURES),
    Mutant("every random draw is the same", "criteria/statistics/random.py", "manual_seed(seed)", "manual_seed(0)", DRAWS),
    Mutant("every budget is pruned by the paths of the first", "runs/contenders.py",
           "lengths.of(run, name, contender.keep)", "lengths.of(run, name, run.recipe.keep)",
           ("test_lengths.py::test_a_comparison_has_a_discovery_for_every_budget",)),
    Mutant("the exam draws one random mask for all", "runs/contenders.py",
           "score.scores_of(run, name, contender.seed, group, t)", "score.scores_of(run, name, 0, group, t)", DRAWS),
    Mutant("oracle rows are called honest", "runs/stages/exam.py", 'protocol="oracle", t=t',
           'protocol="honest", t=t', ORACLE),
    Mutant("the honest table takes every row", "report/reading/rows.py", 'if row.get("protocol") == protocol', "if protocol",
           ORACLE),
    Mutant("the change of a row is tested against itself", "runs/results/row.py", "only = int((mine & ~others).sum())",
           "only = int((mine & ~mine).sum())",
           ("test_report_parts.py::test_the_significance_of_a_row_is_that_of_its_images",)),
    Mutant("images that changed are not the first", "runs/stages/exams/examples.py", "np.lexsort((-loss, ~flipped))",
           "np.lexsort((-loss, flipped))",
           ("test_report_parts.py::test_the_worst_lost_most_and_nobody_who_gained_is_among_them",)),
    Mutant("so many images are said to show any loss", "exam/paired.py", "share = max(differing / n, loss)", "share = loss * loss",
           ("test_verdict.py::test_the_formula_of_power_by_hand",)),
    Mutant("random units never did as well", "report/sections/verdict/sentence.py",
           "if top1 >= mine or (line.p is not None and line.p >= SIGNIFICANT):", "if top1 >= mine:",
           ("test_verdict.py::test_the_verdict_says_what_was_lost_whether_random_did_as_well_and_whether_images_tell",)),
    Mutant("the error of calibration counts bins, not images", "report/reading/predictions.py", "weight = n / n.sum()",
           "weight = n * 0 + 1 / len(n)", ("test_verdict.py::test_calibration_by_hand",)),
    Mutant("a path of this machine is on the page", "report/document.py", "record = told(record)", "record = dict(record)",
           ("test_verdict.py::test_no_absolute_path_is_on_the_page",)),
    Mutant("a specialist's logits are widened in the wrong order", "runs/stages/specialists.py",
           "classifier.widen(found, targets, run.loaded.outputs)",
           "classifier.widen(found, targets[::-1], run.loaded.outputs)", SPECIALIST),
    Mutant("a specialist is examined on the whole head", "runs/stages/specialists.py", 'masked=head == "masked"', "masked=False",
           SPECIALIST),
    Mutant("a specialist is the general model", "runs/stages/specialists.py", '"specialist": _every_logit(known, "specialist", group)',
           '"specialist": logits["generic"][:, targets]', SPECIALIST),
    Mutant("a site's sums are all sites'", "core/least_squares.py",
           "if number in words and bool(OF_ATTENTION & {*words}) == attention:", "if number in words:",
           ("test_sums.py::test_a_site_needs_no_more_than_its_own_sums",)),
    Mutant("an image is read for one model after the other", "runs/results/side_by_side.py",
           "most = max(1, BYTES //", "most = min(1, BYTES //",
           ("test_exam_parts.py::test_under_groups_an_image_is_read_once_for_all_models",)),
    Mutant("an image that could not be read once never is", "runs/stages/split.py",
           'run.folder.clear(run.folder.stage_folder("split") / PARTS, set())', "pass",
           ("test_split_parts.py::test_an_image_that_can_be_read_another_time_is",)),
    Mutant("wrong words of the command are a bug of ours", "cli/app.py", 'if not hasattr(error, "format_message"):', "if True:",
           ("test_cli.py::test_wrong_words_are_one_line",)),
    Mutant("a bar is missed at its limit", "report/bars.py", "value >= self.limit if", "value > self.limit if",
           ("test_gate.py::test_a_bar_is_cleared_when_it_is_reached_and_missed_beyond",)),
    Mutant("a bar is held against an oracle's figure", "report/bars.py", 'if result.get("protocol") != "honest":', "if False:",
           ("test_gate.py::test_what_cannot_be_judged_is_refused_in_one_line",)),
    Mutant("the latency ratio is inverted", "deploy/runtime.py", "np.array(measured) / first", "first / np.array(measured)",
           RATIO),
    Mutant("the report's latency ratio is inverted", "runs/stages/export.py", '"ratio": s["relative"]',
           '"ratio": 1 / s["relative"]', RATIO),
    Mutant("KL leaves the last part out", "exam/metrics.py", "for rows in _parts(logits):", "for rows in _parts(logits)[:1]:",
           LITTLE),
    Mutant("the interval's draws begin again with every part", "exam/metrics.py", "generator.integers(0,",
           "np.random.default_rng(seed).integers(0,", LITTLE),
    # ---- what is pruned
    Mutant("a mean is stored unrounded to the classes", "criteria/results.py", "np.maximum(self.gathered.images, 1)[:, None]",
           "np.maximum(self.gathered.images, 1).max()", KEPT),
    Mutant("the counts of many images wrap", "criteria/paths.py", "np.dtype(np.uint16 if int(images.max(initial=0)) <=",
           "np.dtype(np.uint16 if int(images.min(initial=0)) <=", KEPT),
    Mutant("a damaged column is taken as it is", "criteria/results.py", "if seal != _seal(name, found):", "if False:", SEALED),
    Mutant("every column is read at once", "criteria/results.py", "offset = sorted(",
           "[file.get_tensor(key) for key in file.keys()]; offset = sorted(", ASKED),
    Mutant("sums that fit no card are let be", "criteria/statistics/held.py", "lacks = held + beside > whole", "lacks = False",
           HELD),
    Mutant("the gradients' sums are not counted", "criteria/statistics/held.py", 'WITH_GRADIENTS = "fisher"',
           'WITH_GRADIENTS = "none"', HELD),
    Mutant("the mask is shifted by one", "pruning/masks.py", "order[:count].copy()", "order[1 : count + 1].copy()", BEST),
    Mutant("the worst units stay", "pruning/masks.py", "np.lexsort((np.arange(len(block)), -ties, -block))",
           "np.lexsort((np.arange(len(block)), -ties, block))", BEST),
    Mutant("ties go to the larger index", "pruning/masks.py", "np.lexsort((np.arange(len(block)), -ties, -block))",
           "np.lexsort((-np.arange(len(block)), -ties, -block))", BEST),
    Mutant("one unit more than the budget", "pruning/masks.py", "int(keep * n + 1e-9)", "int(keep * n + 1)", SHARE),
    Mutant("a share is rounded to the nearest", "pruning/masks.py", "int(keep * n + 1e-9)", "round(keep * n)", SHARE),
    Mutant("a curve's costs are pressed into their maxima again", "pruning/masks.py", "curves |= scores.curves or {}",
           "curves |= {}", ("test_allocate.py::test_a_curves_own_costs_are_summed_and_its_order_is_cut",)),
    Mutant("the widths exceed the budget", "pruning/allocate.py", "room = int(budget / atom + 1e-6)",
           "room = int(1.2 * budget / atom + 1e-6)",
           ("test_allocate.py::test_the_widths_are_those_of_every_combination_tried",)),
    Mutant("fc2 keeps other columns than fc1 rows", "model/sites/ffn.py", 'Slice(f"{self.fc2}.weight", 1)',
           'Slice(f"{self.fc2}.weight", 0)', SLIM),
    Mutant("the first entries stay, whatever the units are", "model/sites/base.py", "part.entries(units.cpu())",
           "part.entries(torch.arange(len(units)))", SLIM),
    Mutant("the rows of a packed gate are out of step", "model/sites/ffn.py", "tuple(part * self.size for part in range(self.parts))",
           "tuple(part * (self.size - 1) for part in range(self.parts))", GATED),
    Mutant("a gate layer is not cut", "model/sites/ffn.py", "for path in (self.gate, self.norm):\n            if path is not None:\n                made +=",
           "for path in (None, self.norm):\n            if path is not None:\n                made +=", GATED),
    Mutant("the norm inside an FFN keeps the first entries", "model/sites/ffn.py", "nn.Parameter(weight[units].detach()",
           "nn.Parameter(weight[: len(units)].detach()", GATED),
    Mutant("the affine repair has the wrong sign", "pruning/repair/fold.py", "return weight_S + weight_P @ B,",
           "return weight_S - weight_P @ B,", AFFINE),
    Mutant("the affine repair forgets the mean of the kept units", "pruning/repair/fold.py",
           "(stat.mean[gone] - B @ stat.mean[kept])", "stat.mean[gone]", AFFINE),
    Mutant("the last block's statistics are of all tokens", "model/inside/moments.py", "hidden_BTN[:, read] if", "hidden_BTN if",
           ("test_recovery.py::test_moments_are_those_of_the_stack",)),
    Mutant("what is whole is repaired as well", "pruning/repair/repair.py",
           "        if plan.whole:", "        if not plan.keep:",
           ("test_honest.py::test_keeping_everything_is_the_identity",)),
    Mutant("the repair layer by layer has the wrong sign", "pruning/repair/walk.py", "(self.dense(2 * i + 2, n) - x)[:, read]",
           "(x - self.dense(2 * i + 2, n))[:, read]", LAYERS),
    Mutant("moments of several parts are added around different origins", "core/least_squares.py",
           "moved = other.around(self.origin, inside=True)", "moved = other",
           ("test_sequential.py::test_sums_around_another_origin_are_those_of_the_rows",)),
    Mutant("every fifth image of a batch is held out", "pruning/repair/walk.py",
           "torch.arange(self.first[n], self.first[n] + len(inputs)", "torch.arange(0, len(inputs)",
           ("test_sequential.py::test_what_a_step_holds_out_is_every_fifth_of_all_images",)),
    Mutant("a worker that lost a part goes on without its images", "runs/results/repairing.py",
           "if not walk.holds(part, step):", "if step == 0:",
           ("test_repairing.py::test_a_part_that_is_lost_is_made_again_to_the_same_bits",)),
    Mutant("repairs at once leave nothing for the stage", "runs/record/repairs.py", "targets, dense, kept=True)", "targets, dense)",
           ("test_repairing.py::test_budgets_are_repaired_at_once_and_the_stage_repairs_them_no_more",)),
    Mutant("who waits for a part is not told that nobody will answer", "runs/engine/dispatch.py", "self.failed = error", "pass",
           ("test_ray.py::test_all_jobs_are_given_up_when_nobody_will_answer",)),
    Mutant("a process that has ended is taken for alive", "runs/engine/ray.py", " and process.status() != psutil.STATUS_ZOMBIE", "",
           ("test_ray.py::test_a_process_that_has_ended_is_not_alive",)),
    Mutant("a strip of a Gram matrix is not mirrored", "core/least_squares.py", "+= part[STRIP:].T", "+= 0 * part[STRIP:].T",
           ("test_least_squares.py::test_a_gram_matrix_in_strips_is_the_product",)),
    Mutant("a packed matrix opens without its upper half", "core/least_squares.py", "made[i : i + STRIP, i:] = strip.T",
           "made[i : i + STRIP, i:] = 0", ("test_least_squares.py::test_a_packed_matrix_is_the_lower_half_in_strips",)),
    Mutant("rows that wait for others are lost", "pruning/repair/walk.py", "        if self.waiting:\n", "        if self.count >= TOGETHER:\n",
           ("test_sequential.py::test_every_layer_is_the_least_squares_fit_of_what_it_sees",)),
    Mutant("all dense streams stay in memory", "pruning/repair/streams.py", "        self.room -= value.nbytes\n        self.tensors",
           "        self.tensors", ("test_sequential.py::test_dense_streams_beyond_a_processors_room_lie_in_a_file",)),
    Mutant("a repair looks at all probe images", "runs/stages/moments.py", ".permutation(index)[:most]", ".permutation(probe)",
           ("test_repairing.py::test_a_repair_looks_at_no_more_images_than_it_may",)),
    Mutant("a card has room for every stream", "pruning/repair/streams.py", "self.near -= value.nbytes", "self.near -= 0",
           ("test_repair_on_device.py::test_streams_lie_on_the_card_then_in_pinned_memory_then_in_a_file",)),
    Mutant("a piece of a batch is its first rows", "runs/stages/image_scores.py", "rows[first : first + len(index)]",
           "rows[: len(index)]", ("test_shards.py::test_the_next_batch_is_made_while_one_is_scored",)),
    Mutant("a worker's locks have names in the system", "runs/engine/pool.py", 'set_start_method("fork", force=True)',
           'set_start_method("loky", force=True)',
           ("test_engines.py::test_the_end_is_not_followed_by_a_line_about_semaphores",)),
    Mutant("a stopped repair forgets what was solved", "pruning/repair/layerwise.py",
           "known = step.of(new), solved.read(k) if solved else None", "known = step.of(new), None",
           ("test_repairing.py::test_a_stopped_repair_goes_on_from_what_was_solved",)),
    Mutant("LayerScale is forgotten in the repair", "pruning/repair/layerwise.py", "return widened(scale)",
           "return widened(torch.ones_like(scale))", LAYERS),
    Mutant("the repaired bias is not divided by LayerScale", "pruning/repair/layerwise.py", "_narrowed(bias[live] / gamma[live],",
           "_narrowed(bias[live] * gamma[live],", LAYERS),
    Mutant("qkv's bias is forgotten in its targets", "core/least_squares.py",
           "shift = 0 if layer.bias is None else widened(layer.bias)", "shift = 0",
           ("test_sequential.py::test_targets_through_a_layer_need_not_be_made_row_by_row",)),
    Mutant("a device's elimination forgets what is delayed", "criteria/statistics/elimination_on_device.py",
           "row = self.inverse.index_select(0, j)[0] - past @ self.rows[:k]", "row = self.inverse.index_select(0, j)[0]",
           ("test_on_device.py::test_elimination_on_a_device_is_that_of_the_processor",)),
    Mutant("float64 is asked of mps", "core/device.py", 'if device.type == "mps" else device', 'if device.type == "" else device',
           ("test_device.py::test_float64_lives_where_it_can",)),
    Mutant("what the split decoded is decoded again", "runs/stages/split.py", "stop), keep=keep)", "stop))",
           ("test_decoded_once.py::test_a_run_decodes_each_image_once",)),
    Mutant("the file of pixels is left behind", "runs/state/run.py", "kept.clear(root)", "kept.clear(root / 'stages')",
           ("test_decoded_once.py::test_a_run_decodes_each_image_once",)),
    Mutant("an image counts as kept before it is", "images/kept.py", "if done == self._size and", "if done <= self._size or",
           ("test_decoded_once.py::test_a_disk_that_is_full_costs_time_alone",)),
    Mutant("pixels are divided by 256", "images/batches.py", "([255.0] * self.channels,", "([256.0] * self.channels,",
           ("test_decoded_once.py::test_what_is_kept_becomes_the_transforms_bits",)),
    Mutant("sums are made of products in half precision", "core/device.py", "return x if x.dtype in (torch.float32, torch.float64) else",
           "return x if x.is_floating_point() else",
           ("test_device.py::test_products_are_of_their_kind_inside_and_as_before_outside",)),
    Mutant("the exam is made in the precision of passes", "exam/logits.py", 'with products("float32", device):', "if device:",
           ("test_precision_of_passes.py::test_an_exam_inside_a_pass_is_float32",)),
    Mutant("activation looks at the last token", "criteria/statistics/activation.py", "[:, 0]", "[:, -1]",
           ("test_criteria.py::test_activation_is_the_class_tokens_hidden_value",)),
    Mutant("a score of the class token is taken over all tokens", "model/tokens.py", "return slice(0, 1)", "return slice(0, None)",
           ("test_jas.py::test_every_setting_is_that_of_the_replica",)),
    Mutant("the paper's mask hides every token's units", "model/inside/hooks.py", "return torch.cat([first, hidden_BTN[:, 1:]], 1)",
           "return hidden_BTN * keep_BN[position].to(hidden_BTN)[:, None]",
           ("test_evaluation.py::test_oracle_logits_are_those_of_a_loop",)),
    Mutant("units that a round removed come back", "runs/stages/prune.py",
           "lowest = min(float(scored.min()) for scored in sites.values()) - 1",
           "lowest = max(float(scored.max()) for scored in sites.values()) + 1",
           ("test_rounds.py::test_two_rounds_are_two_prunings_by_hand",)),
    Mutant("the whole model exceeds its budget", "pruning/whole/allocation.py", "shared(every, room - fixed)",
           "shared(every, 1.1 * room - fixed)",
           ("test_whole_budget.py::test_the_road_ends_within_the_budget",)),
    Mutant("an ONNX file is above the budget in megabytes", "pruning/whole/megabytes.py", "onnx(largest) + PER_SITE", "0 * PER_SITE",
           ("test_megabytes.py::test_no_file_weighs_more_than_its_price",)),
    Mutant("a run that takes days is begun unasked", "runs/costs/telling.py", "found.seconds <= 3600 * most", "found.seconds > 0",
           ("test_costs.py::test_above_the_limit_a_run_is_refused_off_a_terminal",)),
    Mutant("measuring leaves another number of threads behind", "runs/costs/rates.py", "        torch.set_num_threads(before)",
           "        pass", ("test_costs.py::test_rates_are_measured_and_leave_nothing_behind",)),
    Mutant("what was measured decides how many images repair", "runs/costs/telling.py", "    run.reporter.say(line(found))",
           "    run.recipe = run.recipe.model_copy(update={\"refit_images\": 5 + int(found.seconds)})",
           ("test_costs.py::test_a_run_that_was_estimated_is_the_run_without",)),
    Mutant("stages that are done are counted again", "runs/costs/estimate.py", "        if name in there:", "        if name in ():",
           ("test_costs.py::test_what_is_done_costs_nothing",)),
    Mutant("the user's own way of waiting is overridden", "runs/engine/threads.py", "if not QUIET.keys() & own.keys():",
           "if own is not None:", ("test_threads.py::test_what_the_user_says_of_waiting_stays",)),
    Mutant("a model that was measured above its budget in time is taken", "pruning/whole/timed.py",
           "found += [(ratio, made)] if ratio <= amount else []", "found += [(ratio, made)]",
           ("test_latency_budget.py::test_the_measured_share_is_just_within_the_budget",)),
    Mutant("slim attention forgets its kernel's scale", "pruning/slim_attention.py", "q = (asked / site.asking(site.dim)) ** 0.5 * curve",
           "q = curve", ("test_whole_budget.py::test_masked_is_sliced_where_attention_is_small",)),
    Mutant("the divergence is of the other model from dense", "exam/metrics.py", "np.exp(p) * (p - q)", "np.exp(q) * (q - p)",
           ("test_words_at_work.py::test_divergence_is_what_a_slow_sum_gives",)),
    Mutant("no budget is out of reach", "pruning/whole/reach.py", "if prices.room(amount) < smallest:",
           "if prices.room(amount) < 0:",
           ("test_words_at_work.py::test_the_library_refuses_before_it_looks_at_images",)),
    Mutant("a recipe of FFN units gets attention pruned", "recipe/recipe.py", "return not covers_attention(self.criterion.name) or",
           "return",
           ("test_budget_words.py::test_what_neither_keep_nor_a_mapping_means",)),
    Mutant("the classifier's repair forgets its ridge", "pruning/repair/head.py", "of_weight.add_(weight, alpha=ridge)",
           "of_weight", ("test_head.py::test_the_minimum_is_scipys",)),
    Mutant("baselines under a whole budget keep attention whole", "runs/stages/prune.py",
           "tuple(targets), ours.attention | cuts)", "tuple(targets))",
           ("test_whole_budget.py::test_the_road_ends_within_the_budget",)),
    Mutant("a model is judged on images that it learnt from", "runs/results/loss_search.py", '"probe": probe[of != fold]',
           '"probe": probe[of >= 0][: len(probe) - 1]',
           ("test_losses.py::test_each_probe_image_is_judged_once_by_a_model_that_never_saw_it",)),
    Mutant("the loss itself, not its bound, is held against the budget", "runs/results/loss_search.py",
           '"within": bound <= asked', '"within": made["loss_points"] <= asked',
           ("test_losses.py::test_the_smallest_within_is_found",)),
    Mutant("the largest share within a loss is taken", "runs/results/loss_search.py", "taken = tried[shares[max(within, 0)]]",
           "taken = tried[max(tried)]", ("test_losses.py::test_the_smallest_within_is_found",)),
    Mutant("baselines of heads keep the exported model's", "runs/stages/prune.py", "ours.attention | cuts)",
           "ours.attention)", ("test_whole_criteria.py::test_a_run_by_another_criterion",)),
    Mutant("the heads that score most go first", "criteria/heads/coordinates.py", "descending=True, stable", "stable",
           ("test_head_scores.py::test_scores_are_cut_from_the_least",)),
    Mutant("a draw of heads forgets its seed", "criteria/heads/scores.py", "default_rng([seed, 1])", "default_rng([0, 1])",
           ("test_head_scores.py::test_a_draw_is_of_its_seed",)),
    Mutant("what the last block saves comes back as cost", "pruning/whole/pricing.py",
           "self.total = float(size.macs(model, self.shortcut))", "self.total = self.dense",
           ("test_shortcut_price.py::test_predicted_is_counted",)),
    Mutant("the shortcut needs no proof", "runs/results/shortcut.py", "> PROVEN:", "> 1e9:",
           ("test_shortcut.py::test_a_file_whose_logits_differ_is_written_again_without",)),
    Mutant("a weight that others read is scaled for all", "deploy/onnx/scales.py",
           "or any(reads[name] != 1 for name in gemm.input[1:])", "",
           ("test_scales.py::test_what_others_read_stays",)),
    Mutant("the class token sees itself alone", "model/inside/first_token.py", "((self.q, first), (self.k, x), (self.v, x))",
           "((self.q, first), (self.k, first), (self.v, first))",
           ("test_first_token.py::test_the_logits_are_those_of_all_tokens",)),
    # ---- nothing old passes for new
    Mutant("the criterion is not in its stage's digest", "runs/stages/order.py", "r.groups, r.criterion, r.baselines",
           "r.groups, r.baselines", REDONE),
    Mutant("the classes are not in the digest", "runs/stages/order.py", "lambda r: (r.classes, r.groups, r.criterion",
           "lambda r: (r.groups, r.criterion", REDONE),
    Mutant("the repair is not in the moments' digest", "runs/stages/order.py", "r.groups, r.recovery, r.refit_images)",
           "r.groups, r.refit_images)", REDONE),
    Mutant("the repair's images are not in the moments' digest", "runs/stages/order.py", "r.recovery, r.refit_images)",
           "r.recovery)", REDONE),
    Mutant("keep is not in the digest", "runs/stages/order.py", "(r.keep, r.recovery,", "(r.recovery,", REDONE),
    Mutant("the allocation is not in the digest", "recipe/recipe.py", 'names = {"round_to", "allocation", ', 'names = {"round_to", ',
           REDONE),
    Mutant("the split's seed is not in the digest", "runs/stages/order.py", "r.data.content(), r.split)",
           "r.data.content(), r.split.probe)", REDONE),
    Mutant("the content of the images is not in the digest", "runs/stages/order.py",
           "else [run.model_digest, run.data_digest]", "else [run.model_digest]", CONTENT),
    Mutant("the weights are not in the model's digest", "runs/state/run.py",
           "result.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())", "pass", PIXELS),
    Mutant("the recipe's hash leaves keep out", "recipe/recipe.py", '            "keep",\n', "", HASHED),
    Mutant("the seed of fisher-obs is no setting of it", "criteria/catalog.py",
           "settings=Seeded,\n        across_blocks=True,", "across_blocks=True,", USES),
    Mutant("jas takes the settings of one unit alone", "criteria/catalog.py", 'settings=named("attribution.settings", "Jas")',
           'settings=named("attribution.settings", "Alone")', USES),
    Mutant("a resumed discovery trusts a part without its seal", "runs/engine/parts.py",
           'return f"{self.job.key(position)}-{checksum(columns)}"', "return self.job.key(position)", PARTS),
    Mutant("a pinned part goes to whoever is free", "runs/engine/dispatch.py", "not self.parts.job.pinned or position",
           "True or position", ("test_engines.py::test_a_pinned_part_goes_to_the_worker_of_its_position",)),
    Mutant("parts that are not kept are left all the same", "runs/engine/parts.py", "        if self.job.kept:\n", "        if True:\n",
           ("test_engines.py::test_a_pinned_part_goes_to_the_worker_of_its_position",)),
    Mutant("sums take parts that are not there as made", "runs/engine/parts.py", "return {} if self.there(position) else None",
           "return {}", ("test_sums.py::test_parts_added_up_on_disk_are_the_sums_of_one_pass",)),
    Mutant("sums of the sites are of the first part alone", "runs/stages/sums.py", "whole = least_squares.plus(whole, {",
           "whole = whole or ({", ("test_sums.py::test_parts_added_up_on_disk_are_the_sums_of_one_pass",)),
    Mutant("a recipe's engine goes before the flag", "runs/engine/opening.py", "said.engine or recipe.engine or",
           "recipe.engine or said.engine or", ("test_inside.py::test_a_flag_goes_before_the_recipe",)),
    Mutant("a worker takes another run's decoded images", "runs/state/elsewhere.py", "made.folder.images.is_relative_to(images.folder)",
           "made.folder.images", ("test_inside.py::test_what_two_runs_have_in_common_is_opened_once",)),
    Mutant("all parts are made ahead", "runs/engine/dispatch.py", "min(position + AHEAD * self.workers, len(self.parts.job.items))",
           "len(self.parts.job.items)", ("test_engines.py::test_a_free_worker_takes_what_waits_and_none_runs_far_ahead",)),
    Mutant("all workers are on the first device", "runs/engine/worker.py", "_names[_rank % len(_names)]", "_names[0]",
           ("test_sharing.py::test_every_worker_has_its_own_device",)),
    Mutant("every share is the first", "runs/results/sharing.py", "range(self.mine, len(job.items), self.count)",
           "range(0, len(job.items), self.count)", ("test_sharing.py::test_shares_together_are_the_whole",)),
    Mutant("a run begins while shares work", "runs/state/workspace.py", "fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)", "pass",
           ("test_sharing.py::test_shares_hold_the_folder_together",)),
    Mutant("a part of other images is taken", "runs/engine/parts.py",
           'return f"{self.job.key(position)}-{checksum(columns)}"', "return checksum(columns)", PARTS),
    Mutant("the order of the images is not in a job's digest", "runs/stages/image_scores.py",
           "return digest(about, index.tolist())",
           "return digest(about, sorted(index.tolist()))", PARTS),
    Mutant("a stage's record is believed without its seal", "core/reading.py", "seal is not None and seal == digest(found)",
           "seal is not None", ("test_hostile.py::test_a_sealed_file_is_what_was_written_or_none",)),
    Mutant("a stage's files are not looked at", "runs/state/workspace.py", "path.is_file() and sha256(path) == made",
           "path.is_file()", ("test_pipeline.py::test_a_lost_file_is_made_again",)),
    # ---- at work, and what is read
    Mutant("mean and deviation change places", "images/preprocess.py", "for values in (self.mean, self.std)",
           "for values in (self.std, self.mean)", PREPARED),
    Mutant("the crop is one pixel off", "images/preprocess.py", "round((image.width - width) / 2)",
           "round((image.width - width) / 2) + 1", PREPARED),
    Mutant("keys and values of a tower change places", "model/load/weights/towers/names.py", 'for one in "qkv")',
           'for one in "qvk")', TOWERS),
    Mutant("registers leave the class token without its position", "model/load/weights/towers/names.py",
           'made["cls_token"] = made["cls_token"] + made["pos_embed"][:, :1]', 'made["cls_token"] = made["cls_token"]', TOWERS),
    Mutant("a shard may lie anywhere", "model/load/weights/shards.py", "or not SHARD.fullmatch(name)]", "]",
           ("test_weights_in_shards.py::test_an_index_that_lies_is_refused_before_a_tensor_is_read",)),
    Mutant("transformers follows an index that nobody looked at", "model/load/opening.py",
           "    shards.shapes(weights)  # before the library follows the names in an index\n", "",
           ("test_weights_in_shards.py::test_a_folder_whose_index_leads_out_of_it_is_not_opened",)),
    Mutant("a tensor may stand in another shard", "model/load/weights/shards.py", "if places.get(name) != shard:", "if False:",
           ("test_weights_in_shards.py::test_an_index_that_lies_is_refused_before_a_tensor_is_read",)),
    Mutant("DINOv2's features lose the mean of the patches", "model/load/build.py", "if layout.stop is None:", "if False:",
           ("test_headless_others.py::test_the_features_are_what_the_head_has_read",)),
    Mutant("DINOv3's rotations have timm's base", "model/load/weights/towers/configs.py", "if theta != 100 else {}", "if False else {}",
           TOWERS),
    Mutant("twelve test images say that an index may stay", "runs/record/figures.py", "and by_chance > TOO_FEW", "and False",
           ("test_backbone_page.py::test_few_images_say_nothing_of_an_index",)),
    Mutant("a pooled output is told as one of patches too", "report/backbone/result.py", 'if about.get("features") == "pooled":',
           "if False:", ("test_backbone_page.py::test_the_two_fvus_are_told_apart",)),
    Mutant("a tower's positions are resampled otherwise", "model/load/weights/towers/opening.py", 'mode="bicubic"',
           'mode="bilinear"', ("test_towers.py::test_dinov2_at_the_size_that_its_images_are_cropped_to",)),
    Mutant("parity looks at the first output alone", "deploy/onnx/exporting.py", "for (x, y), most in zip(pairs, largest, strict=True)]",
           "for (x, y), most in zip(pairs[:0], largest[:0], strict=True)] or [0.0]",
           ("test_backbone_files.py::test_parity_sees_a_wrong_output",)),
    Mutant("fp16's worst image is not held", "deploy/onnx/feature_checks.py", '"fp16": Limit(1e-4, 1e-2)',
           '"fp16": Limit(1e-4, None)', ("test_backbone_files.py::test_the_limits_of_a_precision",)),
    Mutant("random units are those without a repair", "report/backbone/result.py", 'keys = ("recovery", "keep", "budget")',
           'keys = ("keep", "budget")', ("test_backbone_page.py::test_the_page_says_what_is_lost_first",)),
    Mutant("features are written in another order than their paths", "deploy/embed.py", "features=features)",
           "features=features[::-1])", ("test_backbone_files.py::test_predict_writes_the_features_of_images",)),
    Mutant("names are shifted by one in predict", "deploy/predict.py", '"label": classifier.labels[i],',
           '"label": classifier.labels[i - 1],', NAMES),
    Mutant("the ONNX labels are in the images' order", "runs/stages/export.py", "for i in outputs],\n",
           "for i in sorted(outputs, key=lambda i: label(run, i))],\n", NAMES),
    Mutant("a manifest's path may leave its folder", "images/sources/manifest.py", 'if plain.parts[:1] == ("..",):', "if False:",
           ("test_sources.py::test_absolute_paths_are_meant_and_relative_ones_stay_inside",)),
    Mutant("a name may leave the output folder", "recipe/recipe.py", "if not NAME.fullmatch(name):\n            raise",
           "if False:\n            raise", ("test_recipe.py::test_names_that_leave_the_folder",)),
    Mutant("a recipe's tags make objects", "recipe/parse.py", "loader = yaml.SafeLoader(text)",
           "loader = yaml.UnsafeLoader(text)", ("test_no_code.py::test_a_recipe_makes_no_object_of_a_tag",)),
    Mutant("weights are unpickled", "model/load/weights/filling.py", 'torch.load(path, "cpu", weights_only=True)',
           'torch.load(path, "cpu", weights_only=False)', UNPICKLED),
    Mutant("a flipped bit in saved weights is let be", "model/load/weights/checksums.py", 'block["sha256"] != sha256(weights)',
           'len(block["sha256"]) != len(sha256(weights))',
           ("test_checkpoint.py::test_a_flipped_bit_in_the_weights_is_noticed",)),
    Mutant("a half-written file takes the place", "core/files.py", "    try:\n        yield temporary\n",
           "    try:\n        try:\n            yield temporary\n        except BaseException:\n"
           "            os.replace(temporary, path)\n            raise\n",
           ("test_mishaps.py::test_replacing_is_all_or_nothing",)),
    Mutant("the lock is shared", "runs/state/workspace.py", "fcntl.LOCK_EX | fcntl.LOCK_NB", "fcntl.LOCK_SH | fcntl.LOCK_NB",
           ("test_pipeline.py::test_two_runs_in_one_folder",)),
    Mutant("a link in the output folder is followed", "runs/state/workspace.py", "flags | os.O_NOFOLLOW", "flags",
           ("test_mishaps.py::test_results_do_not_follow_a_link_out_of_the_folder",)),
    # ---- slim attention
    Mutant("heads that were cut are not remembered", "model/sites/attention.py", "found.append(getattr(attn, WHOLE, heads if is_whole else 0))",
           "found.append(heads if is_whole else 0)", ("test_backbone.py::test_a_model_whose_attention_was_cut_everywhere_is_saved_without_being_told",)),
    Mutant("heads and dimensions are not written", "model/load/saving.py", "(slim := attention.slim(model))", "(slim := {})",
           ("test_slim_attention.py::test_slim_attention_comes_back_to_equal_outputs",)),
    Mutant("heads may be more than the architecture's", "model/load/folders.py", "if heads > site.heads or dim > site.dim or queries > most:",
           "if dim > site.dim or queries > most:", ("test_slim_attention.py::test_attention_that_no_model_has",)),
    Mutant("queries that may not be fewer are", "model/load/folders.py", "(queries == most or site.query_keys)", "True",
           ("test_slim_attention.py::test_dimensions_behind_a_norm_stay_whole",)),
    Mutant("a bias by position does not go with its head", "model/sites/own_attention.py", "table[:, heads.to(table.device)]",
           "table[:, : len(heads)]", ("test_attention_families.py::test_masked_is_sliced",)),
    Mutant("dimensions of values are taken for those of queries", "model/sites/attention.py", "return dim if queries is None else",
           "return dim if True else", ("test_attention_families.py::test_queries_and_values_of_different_sizes",)),
    Mutant("attention is not mended where blocks have no halves", "pruning/repair/repair.py", "if cuts and state.images is not None:",
           "if False:", ("test_attention_families.py::test_the_repair_of_its_projection_alone_comes_closer",)),
    Mutant("a run takes heads for dimensions", "runs/state/run.py", "*([slim] if slim else [])", "*([] if slim else [])",
           ("test_slim_attention.py::test_a_run_knows_models_apart_that_differ_in_their_heads_alone",)),
    # ---- seeing units
    Mutant("of equal images the higher comes first", "see/exemplars.py", "np.lexsort((images, -values), axis=1)",
           "np.lexsort((-images, -values), axis=1)", ("test_exemplars.py::test_the_lists_are_those_of_sorting_everything",)),
    Mutant("the class token counts as a patch", "see/exemplars.py", "hidden_BTH[:, prefix:]", "hidden_BTH[:, 0:]",
           ("test_exemplars.py::test_the_lists_are_those_of_sorting_everything",)),
    Mutant("test images are looked at", "runs/seeing/looking.py", "for i in run.split.probe.tolist():",
           "for i in [*run.split.test.tolist(), *run.split.probe.tolist()]:",
           ("test_see.py::test_only_probe_images_and_no_picture_twice",)),
    Mutant("blocks at chance are spoken of", "see/alignment.py", "return self.z >= ENOUGH", "return True",
           ("test_alignment.py::test_random_units_are_at_chance_and_those_that_write_classes_are_not",
            "test_see.py::test_a_card_in_the_terminal")),
    Mutant("dead units write", "see/alignment.py", "return length <= DEAD * length.median()", "return length < 0",
           ("test_alignment.py::test_a_unit_that_writes_one_class_is_found_and_dead_ones_are_not",)),
    Mutant("kept units' evidence is told as removed", "see/firing.py", "evidence[~kept_H].sum()", "evidence[kept_H].sum()",
           ("test_alignment.py::test_removed_evidence_by_hand",
            "test_see.py::test_where_all_is_kept_nothing_drifts_and_no_evidence_goes")),
    Mutant("a name ends the atlas' data", "report/atlas/page.py", '.replace("<", "\\\\u003c")', "",
           ("test_see.py::test_names_are_only_ever_text",)),
    Mutant("the free sign of a unit decides its exemplars", "see/seen.py", "hidden_BTH.abs() if self.asked.sized else hidden_BTH",
           "hidden_BTH", ("test_exemplars.py::test_of_units_whose_sign_is_nobodys_choice_the_size_is_looked_at",
                          "test_see_attention.py::test_the_free_sign_of_a_direction_changes_no_table")),
    Mutant("the free sign of a unit decides what it writes", "runs/seeing/parts/alignment.py",
           "torch.maximum(one, other.aligned(i, form).float())", "one",
           ("test_alignment.py::test_a_sign_that_is_nobodys_choice_changes_nothing_of_what_is_written",)),
    Mutant("a look is announced by the folder that it was", "cli/seeing.py", "reporting(made, told)", "reporting(loaded, told)",
           ("test_see.py::test_where_a_look_goes_is_said_once",)),
    Mutant("a head that went is kept", "runs/seeing/parts/directions.py", "[there if h in left.kept else \"no\" for h", "[there for h",
           ("test_see_attention.py::test_what_is_left_of_a_head_is_said",)),
    Mutant("a look at the units is never done", "runs/costs/done.py", "return [] if recipe.see is None else [SEE]", "return []",
           ("test_costs.py::test_a_look_at_the_units_is_a_stage_of_its_own",)),
    # ---- pictures of units
    Mutant("tokens of a mask unit stay where the pass keeps them", "see/pictures/grid.py",
           "patches = patches[:, self.order.to(patches.device)]", "patches = patches[:, :]",
           ("test_maps.py::test_every_family_s_tokens_come_back_to_their_place",)),
    Mutant("every map has a scale of its own", "see/pictures/maps.py", "np.clip(values / scale, 0, 1)",
           "np.clip(values / values.max(), 0, 1)", ("test_maps.py::test_a_map_without_a_shape_is_flat_and_said",)),
    Mutant("the sign of a gated unit decides its map", "see/pictures/maps.py",
           "laid.abs() if reading.gated(site) else laid.relu()", "laid.relu()",
           ("test_maps.py::test_the_sign_of_a_gated_unit_changes_no_map",)),
    Mutant("a pixel at the threshold is in the mask", "see/pictures/masks.py", "return large > torch.from_numpy(threshold)",
           "return large >= torch.from_numpy(threshold)", ("test_masks.py::test_a_map_without_a_shape_has_an_empty_mask",)),
    Mutant("labels of the null band are not permuted", "see/pictures/blocks.py", "generator.permutation(label)", "label.copy()",
           ("test_blocks.py::test_distances_lie_above_the_null_band_only_where_the_classes_differ",)),
    Mutant("units of the last block are raised where nobody reads", "see/pictures/reading.py",
           'if choice == "auto" and last and layout.class_token', "if False", ("test_maps.py::test_tokens_are_those_that_the_head_can_see",)),
    Mutant("every seed gives the same stimulus image", "see/pictures/stimuli/ascent.py", 'f"{target.name} {seed}"',
           'f"{target.name}"', ("test_stimuli.py::test_an_image_is_the_same_alone_or_among_others",)),
    Mutant("one image that fails takes the others with it", "see/pictures/stimuli/ascent.py",
           "images.isfinite().flatten(1).all(1) & values.isfinite()", "images.isfinite().flatten(1).all(1) & values.isfinite().all()",
           ("test_stimuli.py::test_what_becomes_non_finite_fails_alone",)),
    # ---- names of units
    Mutant("names are scored on what they were made from", "runs/seeing/parts/naming/collect.py", "fit[order[::2]] = True, True",
           "fit[order] = True, True", ("test_naming.py::test_images_for_names_are_none_of_those_for_scores",)),
    Mutant("a unit is its own control", "see/naming/scores.py", "order + (order >= np.arange(units)[:, None])", "order + 0",
           ("test_naming.py::test_the_control_is_that_of_other_units_alone",)),
    Mutant("what never changes scores 0", "see/naming/scores.py", "np.where(moves, found, np.nan)", "np.where(moves, found, 0.0)",
           ("test_naming.py::test_what_never_changes_has_no_score",)),
    Mutant("a name has concepts of negative weight", "see/naming/sparse.py", "better = (solved >= 0).all(1) & (rest", "better = (rest",
           ("test_naming.py::test_a_concept_that_others_make_needless_goes",)),
    Mutant("noise has a name", "see/naming/sparse.py", "price = np.log(n) + 2 * np.log(k)", "price = 0.0",
           ("test_naming.py::test_noise_and_silence_have_no_name",)),
    Mutant("the free sign of a gated unit decides its name", "runs/seeing/parts/naming/collect.py",
           "hidden_BTH.abs() if reading.gated", "hidden_BTH if reading.gated",
           ("test_naming.py::test_the_free_sign_of_a_gated_unit_changes_no_name",)),
    Mutant("soft-WPMI forgets the other units", "see/naming/wpmi.py", "found - LAMBDA * shared", "found + 0 * shared",
           ("test_naming.py::test_wpmi_by_hand",)),
    Mutant("the key follows a redirect", "see/naming/server.py", "request.build_opener(_Stay, ", "request.build_opener(",
           ("test_server.py::test_a_failure_is_one_line_and_nothing_is_kept",)),
    Mutant("a key that comes back is shown", "see/naming/server.py", "if (key := _key()) and key.encode() in whole:", "if False:",
           ("test_server.py::test_a_failure_is_one_line_and_nothing_is_kept",)),
    Mutant("requests are not counted before", "see/naming/server.py", "if self.calls + wanted > self.max_calls:", "if False:",
           ("test_server.py::test_requests_are_counted_before_the_first_and_never_go_beyond",)),
    Mutant("a reply about another unit is taken", "see/naming/prompts.py", 'if found["unit"] != prompt.unit:', "if False:",
           ("test_server.py::test_a_failure_is_one_line_and_nothing_is_kept",)),
    Mutant("a reply is kept whatever the images were", "see/naming/server.py", "digest(self.model, prompt.text, pictures)",
           "digest(self.model, prompt.text)", ("test_server.py::test_what_is_asked_and_that_it_is_asked_once",)),
    Mutant("settings of names move every look", "runs/seeing/parts/naming/inputs.py", "exclude=set() if named else set(OWN)",
           "exclude=set()", ("test_names.py::test_another_look_hangs_on_what_names_are_made_from_and_on_nothing_else",)),
    # ---- classes in the stream, labelled pixels
    Mutant("equal logits are ahead of the class", "see/readout.py", "((logits_BTC == own).sum(2) - 1) / 2",
           "((logits_BTC == own).sum(2) - 1)", ("test_readout.py::test_identifiability_by_hand",)),
    Mutant("a class rises with its logit", "see/readout.py", "_own(one.log_softmax(2), labels_B)", "_own(one, labels_B)",
           ("test_readout.py::test_a_class_rises_where_its_probability_does_not_its_logit",)),
    Mutant("keys agree with the values of any class", "see/readout.py", "top_CK.to(keys_BTH.device)[labels_B]",
           "top_CK.to(keys_BTH.device)[labels_B * 0]",
           ("test_readout.py::test_keys_agree_with_the_values_of_the_image_s_own_class",)),
    Mutant("the stream is read without the last norm", "see/alignment.py",
           'model.get_submodule("head")(_last_norm(model)(stream_BTD))', 'model.get_submodule("head")(stream_BTD)',
           ("test_readout.py::test_the_last_block_is_read_as_the_model_reads_it",)),
    Mutant("what stands at the threshold shows the label", "see/pictures/dissection.py", "large > threshold_H[some, None].to(large)",
           "large >= threshold_H[some, None].to(large)", ("test_dissection.py::test_a_value_at_the_threshold_is_not_in_the_mask",)),
    Mutant("labels of another part take the place of these", "see/pictures/dissection.py",
           "place = np.searchsorted(labels, one.labels)", "place = np.arange(len(one.labels))",
           ("test_dissection.py::test_portions_with_other_labels_add_up_to_the_whole",)),
    Mutant("a label is blended with its neighbour", "images/pixel_labels.py", 'interpolation="nearest"', 'interpolation="bilinear"',
           ("test_dissection.py::test_labels_go_where_the_image_goes",)),
    Mutant("a mask of another size is taken", "images/pixel_labels.py", "if own != size:", "if False:",
           ("test_dissection.py::test_a_mask_that_cannot_be_meant_is_one_line",)),
    Mutant("a unit is judged on the images that chose its class", "see/firing.py", "values_NU[~second & (labels_N == c)]",
           "values_NU[labels_N == c]", ("test_alignment.py::test_selectivity_by_hand_and_at_chance",)),
    Mutant("masks of units that no logit sees", "runs/seeing/targets.py", "return [i for i in carry if i != unseen_block(looking)] or carry",
           "return carry", ("test_see_pictures.py::test_masks_are_of_blocks_whose_patches_a_logit_can_see",)),
    Mutant("listed units are a wish", "runs/seeing/targets.py", "if how.list is not None:", "if False:",
           ("test_see_pictures.py::test_listed_units_are_shown_and_no_others",)),
    # ---- vision-language models
    Mutant("one tail of the sign-flip test is forgotten", "see/types/rules.py", "((signs @ d).abs() >=", "((signs @ d) >=",
           ("test_types.py::test_sign_flips_are_those_of_every_sign",)),
    Mutant("the quantile follows the modality with more tokens", "see/types/rules.py",
           "[one.double() / one.sum(1, keepdim=True).clamp_min(1) for one in (visual, text)]",
           "[2 * one.double() / (visual + text).sum(1, keepdim=True) for one in (visual, text)]",
           ("test_types.py::test_the_cut_weighs_both_modalities_alike",)),
    Mutant("a unit's type follows the sign that it was given", "see/types/reading.py", "x.abs().float()",
           "x.clamp_min(0).float()", ("test_types.py::test_the_sign_of_a_gated_unit_changes_nothing",)),
    Mutant("a first token is a token like any other", "model/vlm/tokens.py", "((place == 0) |", "((place < 0) |",
           ("test_opening.py::test_kinds_of_tokens",)),
    Mutant("widths that differ are not written down", "model/vlm/saving.py", "{} if config is not None else",
           "{} if config is None else", ("test_opening.py::test_saved_and_opened_again",)),
    Mutant("the repair block by block aims at the dense model's own output", "pruning/vlm/repair.py", "whole[b] - residual",
           "whole[b] - whole[b] + seen[1]", ("test_pruning.py::test_layer_by_layer_sees_what_came_before",)),
    Mutant("the other image of the exam may be of the same text", "exam/by_modality.py",
           "pairs[i].image != pair.image and pairs[i].text != pair.text", "pairs[i].image != pair.image",
           ("test_pruning.py::test_the_exam_by_modality",)),
    Mutant("the exam is of the pairs to choose with", "api/vlm/road.py", "prepared(self.vlm.preparer, self.split[1])",
           "prepared(self.vlm.preparer, self.split[0])", ("test_road.py::test_nothing_is_chosen_on_pairs_of_the_exam",)),
    Mutant("a dead vision block is ranked", "pruning/vlm/costs.py", "            if grads[i] is None:",
           "            if False:", ("test_pruning.py::test_a_dead_vision_block_is_not_ranked",)),
    Mutant("explanations are scored on the pairs that they were made from", "api/vlm/units/explaining.py",
           "fit, held = looked.placed(fit=True), looked.placed(fit=False)",
           "fit, held = looked.placed(fit=True), looked.placed(fit=True)", ("test_vlm_units.py::test_scores_are_of_other_pairs",)),
    Mutant("a unit that is shown may be one that never fires", "see/types/shown.py", "np.flatnonzero(fires & np.array(",
           "np.flatnonzero(np.array(", ("test_vlm_units.py::test_the_strongest_and_a_draw_are_shown",)),
    Mutant("a long text counts as much as a short one", "see/naming/scores.py", "n = (every * self.places).sum(1, keepdims=True)",
           "n = np.mean(self.places) * every.sum(1, keepdims=True) + 1", ("test_vlm_units.py::test_a_score_over_texts_of_any_length",)),
    Mutant("a step without its weights counts as done", "api/vlm/steps.py", "self._there(found.get(\"files\"))", "True",
           ("test_vlm_page.py::test_a_step_is_done_again_where_a_file_is_gone_or_cut",)),
    Mutant("a file that was edited at its size counts as whole", "api/vlm/steps.py", "return [found.st_size, found.st_mtime_ns]",
           "return [found.st_size]", ("test_vlm_page.py::test_a_step_is_done_again_where_a_file_is_gone_or_cut",)),
    Mutant("an image under two names is two", "model/vlm/pairs.py", "names.setdefault(pair.image.resolve(), pair.image)",
           "pair.image", ("test_road.py::test_an_image_under_two_names_is_one",)),
    Mutant("pairs of one image are independent in the types' test", "see/types/counting.py",
           "images = images_S.to(places.device)[places[order]]", "images = places[order]",
           ("test_types.py::test_pairs_of_one_image_count_once",)),
    Mutant("pairs of one image are independent in the verdict", "api/vlm/record.py",
           "sums = dict.fromkeys(images, 0.0)", "images = range(len(pairs)); sums = dict.fromkeys(images, 0.0)",
           ("test_vlm_page.py::test_pairs_of_one_image_are_one_in_the_verdict",)),
    Mutant("a smaller model outlives its recipe", "api/vlm/road.py", "            without(self.folder / \"model\")\n", "",
           ("test_vlm_page.py::test_a_step_is_whole_or_done_again",)),
    Mutant("what pairs cannot tell is called ahead", "api/vlm/record.py", "if abs(mean) <= reach:", "if False:",
           ("test_vlm_page.py::test_the_verdict_knows_what_pairs_can_tell",)),
    Mutant("percents of a budget on the command line are amounts", "cli/given/flags.py",
           "float(amount.removesuffix(\"%\")) / 100 if percent", "float(amount.removesuffix(\"%\")) if percent",
           ("test_flags.py::test_the_flags_and_the_written_file_are_one_recipe",)),
    Mutant("what was measured does not move the ETA", "core/progress/ahead.py",
           "return min(FURTHEST, max(1 / FURTHEST, measured / expected))", "return 1.0",
           ("test_progress.py::test_the_estimate_is_corrected_by_what_was_measured",)),
    Mutant("a bar is wider than the terminal", "core/progress/words.py",
           "room = min(BAR[1], width - len(shown) - len(right) - 3)", "room = BAR[1]",
           ("test_progress.py::test_a_bar_fits_and_no_number_is_cut",)),
    Mutant("everything of a folder goes to the Hub", "deploy/hub.py",
           "files = [folder / one for one in (*NEEDED, *(ONNX if onnx else ())) if (folder / one).is_file()]",
           "files = [one for one in folder.rglob(\"*\") if one.is_file()]",
           ("test_hub.py::test_only_safe_files_of_the_model_go",)),
    Mutant("a heat map tells another class", "deploy/serve/answers.py",
           "whole = predict.softmax(runtime.predict(one.session, x))[0, output]",
           "whole = predict.softmax(runtime.predict(one.session, x))[0, 0]",
           ("test_serve.py::test_the_heat_map_by_hand",)),
    Mutant("a password in a recipe's track is let be", "recipe/experiments.py",
           'if given is not None and "@" in', 'if given is None and "@" in',
           ("test_tracking.py::test_the_section_moves_no_digest_and_stays_at_home",)),
    Mutant("a table that is too wide cuts numbers", "core/progress/fitting.py", "maximum <= console.width", "maximum > 0",
           ("test_tables.py::test_no_number_is_cut",)),
    Mutant("a Hub that refuses counts as reached", "model/load/weights/fetching.py",
           "said.append(one_line(error))", "said.append(None)",
           ("test_fetching.py::test_a_hub_that_answers_is_reached",)),
    Mutant("the Hub stays switched off", "model/load/weights/fetching.py", "constants.HF_HUB_OFFLINE = before", "pass",
           ("test_fetching.py::test_what_the_cache_has_needs_no_network",)),
    Mutant("a run is compared with itself", "cli/files.py", "if any(folder.samefile(other) for other in runs[:n]):", "if False:",
           ("test_cli.py::test_report_compares_runs",)),
    Mutant("a line on a terminal is not broken", "core/progress/reporter.py",
           "text = words.broken(text, self.console.width)", "pass", ("test_progress.py::test_a_terminal_of_80_columns",)),
    Mutant("a mistake of a verb below a verb points to the first help", "cli/app.py", "found.append(word)", "pass",
           ("test_cli.py::test_wrong_words_are_one_line",)),
)  # fmt: skip


def named_in_promises() -> set[str]:
    """The tests of every promise, as `test_file.py::test_name`."""
    return set(re.findall(r"`tests/(?:\w+/)?(\w+\.py::\w+)`", PROMISES.read_text("utf-8")))


def mutated(mutant: Mutant) -> str | None:
    """The file's text with the fault in it; None where `old` does not stand there exactly once."""
    path = ROOT / "vitprune" / mutant.file
    text = path.read_text("utf-8") if path.is_file() else ""
    return text.replace(mutant.old, mutant.new) if text.count(mutant.old) == 1 else None


def where(folder: Path, name: str) -> str:
    """Where a test lies below a tree's tests/: no two of its files have one name, so the table does without their folders."""
    file, _, test = name.partition("::")
    return "::".join([*(str(path.relative_to(folder)) for path in (folder / "tests").rglob(file)), test])


def pytest_in(folder: Path, tests: Sequence[str]) -> tuple[int, str]:
    """Exit status and output of these tests in a copy of the tree."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    command += [where(folder, name) for name in tests]
    env = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=LIMIT, check=False)
    except subprocess.TimeoutExpired:
        return 1, "out of time"
    return done.returncode, done.stdout + done.stderr


def copy_of_the_tree(folder: Path) -> Path:
    """What the tests need."""
    for name in NEEDED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.tmp"))
        elif source.is_file():
            shutil.copy(source, folder / name)
    return folder


def outcome(mutant: Mutant) -> str:
    """killed, survived, stale (it has nowhere to go) or broken (the tests could not run)."""
    text = mutated(mutant)
    if text is None:
        return "stale"
    with tempfile.TemporaryDirectory(prefix="mutant-") as name:
        folder = copy_of_the_tree(Path(name))
        (folder / "vitprune" / mutant.file).write_text(text, "utf-8")
        code, said = pytest_in(folder, mutant.tests)
    if code not in (0, 1):
        print(said[-2000:], file=sys.stderr)
    return {0: "survived", 1: "killed"}.get(code, "broken")


def main() -> int:
    """Every mutant, or those named; the table, and `N passed, M failed`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=int, nargs="+", metavar="N", help="these numbers of the table, from 1")
    parser.add_argument("--jobs", type=int, default=1, metavar="J", help="mutants at a time")
    given = parser.parse_args()
    numbers = given.only or range(1, len(MUTANTS) + 1)
    if not all(1 <= n <= len(MUTANTS) for n in numbers):
        parser.error(f"--only: the table goes from 1 to {len(MUTANTS)}")
    chosen = [(n, MUTANTS[n - 1]) for n in numbers]
    with tempfile.TemporaryDirectory(prefix="mutant-none-") as name:
        code, said = pytest_in(copy_of_the_tree(Path(name)), sorted({t for _, m in chosen for t in m.tests}))
    if code:
        print(said[-4000:])
        print("The tests do not pass without a mutant, so nothing can be said of them.\n0 passed, 1 failed")
        return 1

    def one(item: tuple[int, Mutant]) -> tuple[int, Mutant, str]:
        started = time.monotonic()
        found = outcome(item[1])
        print(f"{item[0]:3}  {found:9} {time.monotonic() - started:5.0f} s  {item[1].what}", flush=True)
        return (*item, found)

    with ThreadPoolExecutor(given.jobs) as pool:
        rows = list(pool.map(one, chosen))
    print("\n| | fault | file | tests | outcome |\n|---:|---|---|---|---|")
    for n, mutant, found in rows:
        tests = ", ".join(f"`{name}`" for name in mutant.tests)
        print(f"| {n} | {mutant.what} | `{mutant.file}` | {tests} | {found} |")
    killed = sum(found == "killed" for *_, found in rows)
    print(f"{killed} passed, {len(rows) - killed} failed")
    return 0 if killed == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
