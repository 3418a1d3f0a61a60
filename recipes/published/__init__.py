"""Checkpoints of the published code of PAC (Su et al., CVPR 2019), brought to our networks."""
