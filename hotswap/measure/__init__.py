"""What a person wants to know of a network and its swaps, each a verb with a module of its own."""
