"""Weights that are none of the network's."""

from collections import OrderedDict

import torch
from safetensors.torch import save as safetensors_bytes

from hostile.samples import CHECKPOINT, Sample, entry, plan, state, torch_bytes


def weights():
    """Files as they should be, with numbers, shapes or types that they should not have."""
    made = []

    def add(name, tensors, *, refused=True, **about):
        suffixes = {".pt": torch_bytes({"state_dict": tensors, "hotswap": entry(**about)})}
        if all(x.is_contiguous() and not x.is_complex() for x in tensors.values()):
            suffixes[".safetensors"] = safetensors_bytes(dict(tensors), {"hotswap": entry(**about)})
        for suffix, content in suffixes.items():
            made.append(Sample(CHECKPOINT, f"weights {name} {suffix}", suffix, content, refused))

    def changed(**changes):
        return OrderedDict({k: changes.get(k.replace(".", "_"), lambda x: x)(x) for k, x in state().items()})

    for value in (float("nan"), float("inf"), -float("inf"), 3e38, 1e-45):
        add(f"of {value}", changed(guide_weight=lambda x, v=value: torch.full_like(x, v)), refused=False)
        add(f"all of {value}", OrderedDict((k, torch.full_like(x, value)) for k, x in state().items()), refused=False)
    for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn):
        add(f"of {dtype}", OrderedDict((k, x.to(dtype)) for k, x in state().items()), refused=False)
        add(f"one of {dtype}", changed(target_weight=lambda x, d=dtype: x.to(d)), refused=False)
    for dtype in (torch.int8, torch.bool, torch.int64, torch.complex64):
        add(f"one of {dtype}", changed(target_weight=lambda x, d=dtype: x.to(d)), refused=False)
    add("transposed", changed(target_weight=lambda x: x.transpose(0, 1).contiguous()), refused=False)
    add("of another shape", changed(target_weight=lambda x: x[:, :4].contiguous()), refused=False)
    add("scalar", changed(target_weight=lambda x: torch.ones(())), refused=False)
    add("empty", changed(target_weight=lambda x: torch.ones(0)), refused=False)
    add("one too many", OrderedDict(state() | {"more": torch.ones(1)}), refused=False)
    add("learned scales of nowhere", state(), refused=False, learned_scales={"x.guide_log_scale": [1.0, "float32"]})
    add(
        "a learned scale that is huge",
        state(),
        refused=False,
        plan=plan() | {"swaps": [plan()["swaps"][0] | {"learn_scale": True}]},
        learned_scales={"target.guide_log_scale": [1e308, "float32"]},
    )
    return made
