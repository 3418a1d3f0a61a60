"""A network in a file, with its plan."""
