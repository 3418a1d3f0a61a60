"""The operators as functions, with their argument checks and defaults."""
