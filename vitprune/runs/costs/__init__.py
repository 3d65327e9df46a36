"""What a run would cost, told before it is spent: time, memory and disk of every stage, from a few measured batches.

Nothing of it reaches a digest or a result: what is measured here is printed, and held against `--max-hours`.
"""
