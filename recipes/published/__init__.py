"""Checkpoints of the published code of PAC (Su et al., CVPR 2019), brought to our networks: `load` and `migrate`."""

from recipes.published.migration import Migration, load, migrate

__all__ = ["Migration", "load", "migrate"]
