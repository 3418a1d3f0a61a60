"""How a plan is carried out on a network: by its graph, or by hooks."""
