"""What was removed? The section of a run that looked at its units."""

from vitprune.report.sections.removed.section import removed_sections

__all__ = ["removed_sections"]
