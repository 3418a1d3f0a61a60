"""A network as it is: one run of it, the names of its modules, and what a dry run must not change."""
