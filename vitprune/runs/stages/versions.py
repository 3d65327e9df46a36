"""What each stage does, one file each. A stage reads earlier stages' files and returns the files it made.

The test split is touched by `evaluate` and, to prove the written files, by `export`; by nothing before them.
The order is in pipeline.py.
"""

CODE = "4"  # part of every stage's digest; raised when a stage's results change
