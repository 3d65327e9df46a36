"""What a run tells: the record behind report.json."""
