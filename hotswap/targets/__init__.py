"""Targets: the plan, the choice of targets, and the layers that take their place."""
