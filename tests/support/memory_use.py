"""How much one tensor held at most while something ran."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Largest(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        held = [x.untyped_storage().nbytes() for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        self.bytes = max([self.bytes, *held])
        return out


def largest_tensor(run):
    """Bytes of the largest tensor that any operation of `run` gave, views of what was there before included."""
    with _Largest() as largest:
        run()
    return largest.bytes
