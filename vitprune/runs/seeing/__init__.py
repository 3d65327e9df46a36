"""What a run shows of its units: the stage `see`, its parts, and what they leave."""
