"""Where exported networks run: `python -m benchmarks.runtimes`, from rows to the table of docs/export.md."""
