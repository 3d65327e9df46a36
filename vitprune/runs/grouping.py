"""`groups: {auto: k}`: classes that use the same hidden units become one specialist's.

The classes' utilisation matrices (how often each unit is on the neuron paths of a class's probe images) are compared by
their cosine, as in Figure 5 of the paper, and cut into k clusters by average linkage. Labels of probe images only; the
test split plays no part.
"""

from __future__ import annotations

from vitprune.core.errors import UserError
from vitprune.core.files import write_json, write_sealed
from vitprune.core.reading import digest, read_sealed
from vitprune.recipe.recipe import Recipe
from vitprune.runs.stages import score
from vitprune.runs.stages.versions import CODE
from vitprune.runs.state import lengths
from vitprune.runs.state.run import Run
from vitprune.see import usage
from vitprune.see.groups import groups


def resolve(run: Run, force: bool = False) -> Recipe:
    """The recipe with named groups in the place of `auto: k`; found by TopK JAS on the probe split, once.

    Raises UserError for more groups than classes.
    """
    recipe, k = run.recipe, run.recipe.clusters
    assert k is not None
    name = recipe.criterion.model_copy(update={"name": "jas"})
    plain = recipe.model_copy(update={"clusters": None, "criterion": name, "baselines": [], "paper_protocol": None})
    inner = run.inside(run.folder.stage_folder("cluster"), plain, shared=True)
    record = run.split_record
    write_json(inner.folder.stage_folder("split") / "split.json", record)
    targets = inner.classes.every()
    if k > len(targets):
        raise UserError(f"groups.auto: {k} groups of {len(targets)} classes; ask for {len(targets)} at most")
    parts = [CODE, record, run.model_digest, run.data_digest, lengths.told(inner), k]
    key, path = digest(*parts), inner.folder.root / "groups.json"
    known = None if force else read_sealed(path)
    if known is None or known.get("key") != key:
        score.discover(inner)
        scores = score.scores_of(inner, "jas")
        similarity = usage.alike(block[targets].numpy() for block in scores.sites.values())
        found = groups(similarity, k)
        names = [[run.classes.name(targets[i]) for i in members] for members in found]
        known = {"key": key, "groups": {f"group-{n + 1}": members for n, members in enumerate(names)}}
        write_sealed(path, known)
        shown = "; ".join(f"{group}: {', '.join(members)}" for group, members in known["groups"].items())
        run.reporter.say(f"groups by class similarity: {shown}")
    return recipe.model_copy(update={"groups": known["groups"], "clusters": None})
