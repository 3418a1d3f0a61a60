"""Swap convolutions of a trained network for pixel-adaptive ones, weights kept.

model = hotswap.convert(model, targets=["conv3_3", "conv4_3", "conv5_3"], guide="conv2_2")
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hotswap.api import apply, convert, plan, revert
    from hotswap.checkpoint.load import load
    from hotswap.checkpoint.push import push_to_hub
    from hotswap.checkpoint.write import save
    from hotswap.enlarging.api import enlarge
    from hotswap.errors import HotswapError
    from hotswap.exporting.export import Exported, export
    from hotswap.measure.calibrate import Calibration, calibrate
    from hotswap.measure.inspect import Inspection, inspect
    from hotswap.measure.status import Status, status
    from hotswap.measure.verify import Verification, verify
    from hotswap.rates import parameter_groups
    from hotswap.reporting.api import Report, report
    from hotswap.searching.api import search
    from hotswap.searching.preview import Preview, preview
    from hotswap.searching.result import SearchResult
    from hotswap.surgery.registry import register_concrete_args, register_leaf
    from hotswap.targets.entries import Swap
    from hotswap.targets.guide_spaces import GuideSpace
    from hotswap.targets.output import Output
    from hotswap.targets.plan import Plan
    from hotswap.targets.window import register_padding
else:
    # Where each name is, which is imported when it is first asked for: torch takes seconds, and help needs none.
    _MODULES = {
        "hotswap.api": ("apply", "convert", "plan", "revert"),
        "hotswap.checkpoint.load": ("load",),
        "hotswap.checkpoint.push": ("push_to_hub",),
        "hotswap.checkpoint.write": ("save",),
        "hotswap.enlarging.api": ("enlarge",),
        "hotswap.errors": ("HotswapError",),
        "hotswap.exporting.export": ("Exported", "export"),
        "hotswap.measure.calibrate": ("Calibration", "calibrate"),
        "hotswap.measure.inspect": ("Inspection", "inspect"),
        "hotswap.measure.status": ("Status", "status"),
        "hotswap.measure.verify": ("Verification", "verify"),
        "hotswap.rates": ("parameter_groups",),
        "hotswap.reporting.api": ("Report", "report"),
        "hotswap.searching.api": ("search",),
        "hotswap.searching.preview": ("Preview", "preview"),
        "hotswap.searching.result": ("SearchResult",),
        "hotswap.surgery.registry": ("register_concrete_args", "register_leaf"),
        "hotswap.targets.guide_spaces": ("GuideSpace",),
        "hotswap.targets.entries": ("Swap",),
        "hotswap.targets.output": ("Output",),
        "hotswap.targets.plan": ("Plan",),
        "hotswap.targets.window": ("register_padding",),
    }
    _MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

    def __getattr__(name):
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = globals()[name] = getattr(import_module(_MODULE_OF[name]), name)
        return value

    def __dir__():
        return sorted({*globals(), *__all__})


__version__ = "0.1.0"
__all__ = [
    "Calibration",
    "Exported",
    "GuideSpace",
    "HotswapError",
    "Inspection",
    "Output",
    "Plan",
    "Preview",
    "Report",
    "SearchResult",
    "Status",
    "Swap",
    "Verification",
    "apply",
    "calibrate",
    "convert",
    "enlarge",
    "export",
    "inspect",
    "load",
    "parameter_groups",
    "plan",
    "preview",
    "push_to_hub",
    "register_concrete_args",
    "register_leaf",
    "register_padding",
    "report",
    "revert",
    "save",
    "search",
    "status",
    "verify",
]
