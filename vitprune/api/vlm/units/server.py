"""The shown units named by a language model behind an address, and its names tried on other pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from vitprune.api.vlm.units.looked import Looked
from vitprune.core.progress import Reporter
from vitprune.core.reading import Json
from vitprune.see.naming import marked, prompts
from vitprune.see.naming.prompts import Prompt
from vitprune.see.naming.server import Server
from vitprune.see.types import asking, simulating, words
from vitprune.see.types.shown import Unit


@dataclass
class Asked:
    """Who is asked about the units of a look. `folder`: where replies are kept, so that none is paid for twice."""

    looked: Looked
    folder: Path
    reporter: Reporter
    texts: dict[Unit, str | None] = field(default_factory=dict)

    @cached_property
    def server(self) -> Server:
        """Behind the recipe's address."""
        how = self.looked.see.names
        assert how.url is not None and how.model is not None
        return Server(how.url, how.model, self.folder, how.max_calls, how.timeout, self.reporter.say)

    def names(self) -> list[str | None]:
        """A name for every unit that fires, None for one that has none; what it takes with its trial is said, and held
        against `max_calls`, before."""
        looked, server = self.looked, self.server
        asked = {unit: self._naming(u) for u, unit in enumerate(looked.units) if self._fires(u)}
        new = sum(server.known(prompt) is None for prompt in asked.values())
        kinds = sum((unit.sees and looked.grid is not None) + unit.reads for unit in asked)
        later = kinds * len(self._held) if new else 0
        pictures = sum(len(prompt.images) for prompt in asked.values())
        self.reporter.say(
            f"see: names: {new} requests to {server.place} ({looked.see.names.model}) about {len(asked)} units, {pictures} "
            f"images" + (f"; up to {later} more of the simulator" if later else "")
        )
        if new:
            server.warn()
            server.afford(new + later, "naming the units that are shown and trying it")
        for unit, prompt in self.reporter.track(asked.items(), "see server", len(asked)):
            self.texts[unit] = server.ask(prompt)["text"]
        return [self.texts.get(unit) for unit in looked.units]

    def tried(self) -> Json:
        """What the server makes of each name on pairs for scores: on the cells of images, on the tokens of texts."""
        asked: dict[str, dict[Unit, list[Prompt]]] = {"image": {}, "text": {}}
        true: dict[str, dict[Unit, list[np.ndarray]]] = {"image": {}, "text": {}}
        for u, unit in enumerate(self.looked.units):
            text = self.texts.get(unit)
            if text is not None and unit.sees and self._cells:
                asked["image"][unit] = [asking.of_image(unit, text, one, *self._shape) for one in self._cells]
                true["image"][unit] = [self._map(u, n) for n in self._seen]
            if text is not None and unit.reads:
                asked["text"][unit] = [asking.of_text(unit, text, self.looked.words(n)) for n in self._held]
                true["text"][unit] = [self.looked.found[n].line(u) for n in self._held]
        every = [prompt for some in asked.values() for own in some.values() for prompt in own]
        new = sum(self.server.known(prompt) is None for prompt in every)
        self.reporter.say(f"see: simulator: {new} requests to {self.server.place}")
        if new:
            self.server.afford(new, "trying the names")
        replies = iter([self.server.ask(one)["cells"] for one in self.reporter.track(every, "see server", len(every))])
        said = {
            kind: {unit: [np.array(next(replies), np.float64) for _ in own] for unit, own in some.items()}
            for kind, some in asked.items()
        }
        seed = self.looked.see.units.seed
        return {kind: simulating.scored(said[kind], true[kind], seed) for kind in asked}

    def told(self) -> Json:
        """Who was asked, how often, with which prompts; no key."""
        how, server = self.looked.see.names, self.server
        used = sorted({asking.NAMES[unit.kind] for unit in self.texts} | {asking.IMAGE, asking.LINE})
        counts = {"calls": server.calls, "cached": server.cached, "tokens": server.tokens or None}
        return {"url": how.url, "model": how.model, **counts, "prompts": [prompts.about(name) for name in used]}

    def _fires(self, u: int) -> bool:
        return any(self.looked.most(u, n) > 0 for n in self.looked.side(fit=True))

    def _naming(self, u: int) -> Prompt:
        looked, unit = self.looked, self.looked.units[u]
        sides = looked.exemplars(u)
        images = tuple([looked.outlined(u, n) for n in side] if unit.sees else [] for side in sides)
        most = max(float(looked.found[n].line(u).max(initial=0)) for n in looked.side(fit=True))
        lists = tuple(
            [words.token_list(looked.words(n), looked.found[n].line(u), most) for n in side] if unit.reads else []
            for side in sides
        )
        return asking.naming(unit, (images[0], images[1]), (lists[0], lists[1]))

    @cached_property
    def _held(self) -> list[int]:
        """Pairs for the trial, the same for all units: one half the units' strongest, each unit's next in turn, the others a
        seeded draw; of those whose images' tokens have known places, where there are any."""
        looked, count = self.looked, self.looked.see.simulator.images
        side = looked.placed(fit=False) or looked.side(fit=False)
        order = [sorted(side, key=partial(looked.most, u), reverse=True) for u in range(len(looked.units))]
        taken: list[int] = []
        for place in range(len(side)):
            for one in order:
                if len(taken) < count // 2 and one[place] not in taken:
                    taken.append(one[place])
        rest = np.random.default_rng([looked.see.units.seed, count]).permutation(np.setdiff1d(side, taken))
        return [*taken, *rest[: count - len(taken)].tolist()]

    @property
    def _seen(self) -> list[int]:
        return self._held if self.looked.grid is not None and self.looked.placed(fit=False) else []

    @cached_property
    def _shape(self) -> tuple[int, int]:
        rows, columns = self.looked.grid or (0, 0)
        return min(marked.CELLS, rows), min(marked.CELLS, columns)

    @cached_property
    def _cells(self) -> Sequence[bytes]:
        return [marked.gridded(self.looked.picture(n), *self._shape) for n in self._seen]

    def _map(self, u: int, n: int) -> np.ndarray:
        whole = self.looked.found[n].map(u).reshape(1, 1, *(self.looked.grid or (0, 0)))
        found: np.ndarray = marked.celled(whole).reshape(-1)
        return found
