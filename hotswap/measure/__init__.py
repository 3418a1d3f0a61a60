"""Verbs that measure a network and its swaps, each in a module of its own."""
