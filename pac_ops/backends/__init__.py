"""The implementations of the operators, one module or folder each, and the choice of one at a call."""
