"""What hotswap may refuse, by its words: docs/swapping.md says the same for people."""

import re
from collections.abc import Mapping

_NAME = r"'[^']*'"
DOCUMENTED = {
    "a guide called twice before a target reads it (hooks)": rf"guide {_NAME} is called twice before a target reads it",
    "a guide called several times, none of which the target comes from": rf"guide {_NAME} is called \d+ times and",
    "code that torch.fx cannot trace": r"\w+\.\w+ cannot be traced by torch\.fx",
    "a module with hooks (fx)": rf"module {_NAME} has hooks, which the rewritten forward would not call",
    "enlargements by hooks, convolutions by fx": rf"module {_NAME} has enlargements whose guides are caught by hooks",
    "a guide that runs after the target": rf"guide {_NAME} is computed after target",
    "a guide inside a target (fx)": rf"target {_NAME} holds {_NAME}, so that the rewritten forward has its code",
    "a guide or target that the code around it does not call itself (fx)": rf"(guide|target) {_NAME} is never called",
    "what torch.fx makes of the code is not the network (fx)": r"rewritten by fx, .* is not itself",
    "a call that activation checkpointing runs again by itself": r"activation checkpointing runs again by itself",
    "a guide around an enlargement that is guided itself": rf"target {_NAME} was called without its guide",
    "a guide that is too coarse": rf"guide {_NAME} of \d+ x \d+ is coarser than the output",
    "an enlargement beyond all that comes before": r"cannot be swapped: nothing before it is as fine as its output",
    "turns of a loop that nothing tells apart": r"is one of \d+ calls of F\.interpolate from one place",
    "turns of a loop that are made of the same at another size": r"makes other calls of F\.interpolate at this size or",
    "a guide of another batch": rf"guide {_NAME} must have the target's batch size",
}

RUNNING = {  # what a converted network may refuse
    "a target apart from its guide in the checkpointed part": r"target .* is run again by activation checkpointing",
    "turns of a loop that are made of the same in training": r"makes other calls of F\.interpolate at this size or",
}
EXPORTING = {  # what export may refuse, where it refuses the plain network as well
    "PyTorch's exporters write something else": r"the exported (network|file) (differs|fails)",
    "torch.export does not take the network": r"torch\.export cannot export this network",
    "PyTorch's ONNX exporter does not take the network": r"PyTorch's ONNX exporter cannot write this network",
}


def reason(message: str, documented: Mapping[str, str] = DOCUMENTED) -> str | None:
    """The documented reason that a refusal gives; None where it is not one of them."""
    return next((name for name, words in documented.items() if re.search(words, message)), None)
