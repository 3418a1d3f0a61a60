"""Keeps the state of a network, and of random generators, through a dry run.

Networks cache what they compute: attention biases by device, positions by size. A run on fake tensors or proxies
would leave those in the cache, for the next real run to trip over.
"""

import copy
import pickle
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

_OF_EVERY_MODULE = frozenset(nn.Module().__dict__)
_HOOKS = sorted(name for name in _OF_EVERY_MODULE if name.endswith(("_hooks", "_kwargs", "_called")))


@contextmanager
def untouched(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Restore the attributes, buffers and hooks of modules, and the contents of their dicts, lists and sets.

    Hooks too: a network that gives itself hooks when it is first called notes that in an attribute, and would give
    itself the same again.
    """
    kept = [(module, _attributes(module)) for module in modules]
    with contents_kept(module for module, _ in kept):
        try:
            yield
        finally:
            for module, before in kept:
                for name in _attributes(module).keys() - before.keys():
                    del module.__dict__[name]
                module.__dict__.update(before)


@contextmanager
def contents_kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Restore the contents of modules' dicts (buffers and hooks among them), lists and sets."""
    contents = [(held, copy.copy(held)) for held in _containers(modules)]
    try:
        yield
    finally:
        for held, before in contents:
            held.clear()
            (held.extend if isinstance(held, list) else held.update)(before)


def random_state() -> bytes:
    """The state of the random generators of Python, numpy and torch."""
    with unset_fake_temporarily():  # where networks are swapped under it, or the state would be a tensor without data
        state = torch.get_rng_state().numpy()
    return pickle.dumps([random.getstate(), np.random.get_state(), state])  # noqa: NPY002 (what users' code draws from)


@contextmanager
def random_numbers_kept(seed: int = 0) -> Iterator[None]:
    """Draw from this seed, then restore the generators of Python, numpy and torch."""
    state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 (what users' code draws from)
    try:
        # Not of GPUs that nothing has run on: to seed these would be to set them up.
        gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        with torch.random.fork_rng(devices=gpus):
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            torch.default_generator.manual_seed(seed)
            if gpus:
                torch.cuda.manual_seed_all(seed)
            yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)  # noqa: NPY002


@contextmanager
def written_back(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Restore tensors that are written to; in the end the list holds them."""
    lazy = (nn.parameter.UninitializedParameter, nn.parameter.UninitializedBuffer)
    # Torch does not count writes to tensors made in inference mode.
    counted = [x for x in tensors if not x.is_inference() and not isinstance(x, lazy)]
    kept = [(x, x.detach().clone(), x._version) for x in counted]
    written: list[Tensor] = []
    try:
        yield written
    finally:
        with torch.no_grad():
            for x, before, version in kept:
                if x._version != version:
                    written.append(x)
                    x.copy_(before)


def cached_tensors(modules: Iterable[nn.Module]) -> list[Tensor]:
    """The tensors in dicts and lists of modules, beside parameters, buffers and hooks."""
    modules = list(modules)
    other = {id(module.__dict__[name]) for module in modules for name in ("_buffers", *_HOOKS)}
    held = [container for container in _containers(modules) if id(container) not in other]
    values = [value for x in held for value in (x.values() if isinstance(x, dict) else x)]
    return [value for value in values if isinstance(value, Tensor)]


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in module.__dict__.items() if name not in _OF_EVERY_MODULE}


def _containers(modules: Iterable[nn.Module]) -> list[Any]:
    containers: list[Any] = []
    for module in modules:
        containers += [value for value in _attributes(module).values() if isinstance(value, dict | list | set)]
        if isinstance(module._buffers, dict):  # that of a ScriptModule is a view of what it keeps elsewhere
            containers += [module._buffers, *(module.__dict__[name] for name in _HOOKS)]
    return containers
