"""Names of the shown units by a language model behind an address, which is sent their strongest images and random ones."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vitprune.core.reading import Json
from vitprune.runs.seeing.looking import Looking
from vitprune.runs.seeing.parts.naming import grids
from vitprune.runs.seeing.parts.naming.collect import Activations
from vitprune.runs.seeing.parts.naming.namers import Named
from vitprune.see.naming import marked, prompts
from vitprune.see.naming.prompts import Prompt
from vitprune.see.naming.server import Server

CACHE = "cache"  # in the folder `see`
REPLY = re.compile(r"[0-9a-f]{32}\.json")


def replies(looking: Looking) -> list[Path]:
    """What was answered, now or for an earlier look, and may have cost something: it stays."""
    return [path for path in sorted((looking.folder / CACHE).glob("*.json")) if REPLY.fullmatch(path.name)]


@dataclass
class ServerNames:
    """Whom to ask, and what was answered."""

    looking: Looking
    found: Activations
    server: Server
    texts: dict[tuple[int, int], str | None] = field(default_factory=dict)

    @classmethod
    def of(cls, looking: Looking, found: Activations) -> ServerNames:
        """Every shown unit that fires, asked about; what it will take is said, and held against `max_calls`, before."""
        how, say = looking.see.names, looking.run.reporter.say
        assert how.url is not None and how.model is not None
        folder = looking.folder / CACHE
        server = Server(how.url, how.model, folder, how.max_calls, how.timeout, say)
        made = cls(looking, found, server)
        asked = made._prompts()
        new = sum(server.known(prompt) is None for prompt in asked.values())
        later = len(asked) * looking.see.simulator.images if new and "simulator" in looking.see.parts else 0
        pictures = sum(len(prompt.images) for prompt in asked.values())
        say(
            f"see: names: {new} requests to {server.place} ({how.model}) about {len(asked)} units, {pictures} images"
            + (f"; up to {later} more of the simulator, an image each" if later else "")
        )
        if new:
            server.warn()
            server.afford(new + later, "naming the units that the report shows" + (" and trying it" if later else ""))
        for unit, prompt in looking.run.reporter.track(asked.items(), "see server", len(asked)):
            made.texts[unit] = server.ask(prompt)["text"]
        return made

    def block(self, i: int) -> list[Named | None]:
        """The replies; nothing of units that are not shown."""
        named: list[Named | None] = []
        for j in range(self.looking.sites[i].size):
            text = self.texts.get((i, j))
            named.append(None if text is None else Named(((text, 1.0),)))
        return named

    def predicted(self, i: int) -> None:
        """Nothing: only the simulator asks what a text says of an image."""
        return None

    def about(self) -> Json:
        """Who was asked, with which prompt, and what it took so far."""
        return {"server": self.told() | {"prompt": prompts.about(prompts.NAME)}}

    def told(self) -> Json:
        """Who was asked and how often."""
        how, server = self.looking.see.names, self.server
        counts = {"calls": server.calls, "cached": server.cached, "tokens": server.tokens or None}
        return {"url": how.url, "model": how.model, **counts}

    def _prompts(self) -> dict[tuple[int, int], Prompt]:
        laid = grids.laid(self.looking, self.found)
        how, fit = self.looking.see.exemplars, np.flatnonzero(self.found.fit)
        asked = {}
        for i, units in self.found.shown.items():
            for k, j in enumerate(units):
                maps = self.found.maps[i][:, :, k]
                if maps.max() <= 0:  # never fires
                    continue
                top = fit[np.argsort(-maps[fit].max(1), kind="stable")[: how.k]]
                rest = np.setdiff1d(fit, top)
                drawn = np.random.default_rng([self.looking.see.units.seed, i, j]).permutation(rest)[: how.random]
                threshold = float(np.quantile(maps, how.quantile))
                shapes = None if isinstance(laid, str) else laid[i][:, k]
                pictures = [[self._picture(at, shapes, threshold) for at in part.tolist()] for part in (top, drawn)]
                asked[i, j] = prompts.naming(f"{i}:{j}", pictures[0], pictures[1])
        return asked

    def _picture(self, at: int, shapes: np.ndarray | None, threshold: float) -> bytes:
        picture = grids.picture(self.looking, int(self.found.index[at]))
        return marked.plain(picture) if shapes is None else marked.outlined(picture, shapes[at], threshold)
