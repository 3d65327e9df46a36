"""Progress: what is being done, of how many, how fast, and when the whole run ends."""

from vitprune.core.progress.reporter import Reporter as Reporter
