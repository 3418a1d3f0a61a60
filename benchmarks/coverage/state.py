"""What of a network no verb may change, succeed or fail: noted module by module, and compared later."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

_HOOKS = sorted(name for name in vars(nn.Module()) if name.endswith("_hooks"))
_OWN = ("hotswap", "pac_ops")
_ADDED = ("guide_log_scale", "tap_factors")  # of a swapped layer


class State:
    """Modes, parameters with their gradients, buffers and hooks of a network, as they are now."""

    def __init__(self, model: nn.Module) -> None:
        self._facts = dict(_facts(model))
        self._tensors = _tensors(model)
        self._versions = {name: x._version for name, x in self._tensors.items()}
        self._gradients = {name: x.grad for name, x in self._tensors.items()}
        self._values = {name: x.detach().clone() for name, x in model.named_buffers(remove_duplicate=False)}

    def differences(self, model: nn.Module, *, copied: bool = False) -> list[str]:
        """What is not as it was. A copy has tensors of its own, and no gradients, as torch copies parameters."""
        now, tensors = dict(_facts(model)), _tensors(model)
        found = [
            f"{name}: {self._facts.get(name)} -> {now.get(name)}"
            for name in sorted(self._facts.keys() | now.keys())
            if self._facts.get(name) != now.get(name)
        ]
        found += [
            f"buffer {name} has other values"
            for name, x in self._values.items()
            if name in tensors and not torch.equal(x, tensors[name])
        ]
        if not copied:
            for name, x in self._tensors.items():
                other = tensors.get(name)
                if other is not x:
                    found.append(f"{name} is another tensor")
                elif x._version != self._versions[name]:
                    found.append(f"{name} was written to")
                elif x.grad is not self._gradients[name]:
                    found.append(f"{name} has another gradient")
        return found


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    pairs = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return {name: x for name, x in pairs if name.rpartition(".")[2] not in _ADDED}


def _facts(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for path, module in model.named_modules(remove_duplicate=False):
        if type(module).__name__ == "GuidedInterpolate":  # stands for a call, and was added
            continue
        yield f"{path or 'the network'} training", module.training
        for kind in _HOOKS:
            hooks = [hook for hook in vars(module).get(kind, {}).values() if not _is_own(hook)]
            yield f"{path or 'the network'} {kind}", [type(hook).__qualname__ for hook in hooks]
    for name, x in _tensors(model).items():
        yield name, (type(x), x.requires_grad, x.device, x.dtype, tuple(x.shape))


def _is_own(hook: Any) -> bool:
    return type(hook).__module__.partition(".")[0] in _OWN
