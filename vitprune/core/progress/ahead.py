"""When a run will end: the estimate of its stages, corrected by what those behind it took."""

from __future__ import annotations

from dataclasses import dataclass, field

TRUST = 5.0  # seconds that the estimate is believed for, whatever is measured
LATE = 0.1  # of its time so far, that a stage past its estimate is expected to take at least
FURTHEST = 20.0  # how far what is measured may move the estimate, up or down


@dataclass(slots=True)
class Ahead:
    """Estimated seconds of each stage that is left, in order; `times`: how often a stage is done, once where not said."""

    seconds: dict[str, float]
    times: dict[str, int] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=dict)
    ended: dict[str, int] = field(default_factory=dict)

    def finished(self, stage: str, seconds: float, worked: bool = True) -> None:
        """A stage ended after so many seconds; one that found its work done (`worked` is false) says nothing of the rest."""
        if not worked:
            if stage not in self.seconds:  # nothing was expected of it
                return
            times = max(1, self.times.get(stage, 1))
            self.seconds[stage] *= (times - 1) / times
            self.times[stage] = times - 1
            return
        self.spent[stage] = self.spent.get(stage, 0.0) + seconds
        self.ended[stage] = self.ended.get(stage, 0) + 1

    def place(self, stage: str) -> tuple[int, int] | None:
        """Which of how many a stage is, from 1; None for one that nothing was expected of."""
        names = list(self.seconds)
        return (names.index(stage) + 1, len(names)) if stage in self.seconds else None

    def factor(self, stage: str | None = None, running: float = 0.0) -> float:
        """How many times as long as estimated things take: of the stages that ended, and of the one that is `running` for so
        many seconds where that is more than its own estimate."""
        measured = expected = TRUST
        for name, seconds in self.seconds.items():
            if ended := self.ended.get(name, 0):
                measured += self.spent[name]
                expected += seconds * min(1.0, ended / max(1, self.times.get(name, 1)))
        own = self.seconds.get(stage or "", 0.0) / max(1, self.times.get(stage or "", 1))
        if running > own * measured / expected:
            measured, expected = measured + running, expected + own
        return min(FURTHEST, max(1 / FURTHEST, measured / expected))

    def left(self, stage: str | None = None, running: float = 0.0, own: float = 0.0) -> float:
        """Seconds until the end; `own`: what the work at hand says it takes itself, at least."""
        factor, total = self.factor(stage, running), 0.0
        for name, seconds in self.seconds.items():
            if self.ended.get(name, 0) >= self.times.get(name, 1):
                continue
            rest = seconds * factor - self.spent.get(name, 0.0)
            late = LATE * running if running > rest else 0.0
            total += max(rest - running, own, late) if name == stage else max(rest, 0.0)
        return total if stage in self.seconds else total + own
