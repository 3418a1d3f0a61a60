"""Does the swap work on every network there is? `python -m benchmarks.coverage` tries, and keeps a row for each."""
