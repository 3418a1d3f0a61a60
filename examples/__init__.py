"""Things to run: real weights, real pictures."""
