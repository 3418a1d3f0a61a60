"""Swap convolutions of a trained network for pixel-adaptive ones, weights kept.

model = hotswap.convert(model, targets=["conv3_3", "conv4_3", "conv5_3"], guide="conv2_2")
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hotswap.api import apply, convert, plan, revert
    from hotswap.checkpoint import load, save
    from hotswap.errors import HotswapError
    from hotswap.exporter import Exported, export
    from hotswap.leaves import register_concrete_args, register_leaf
    from hotswap.measure.calibrate import Calibration, calibrate
    from hotswap.measure.inspect import Inspection, inspect
    from hotswap.measure.status import Status, status
    from hotswap.measure.verify import Verification, verify
    from hotswap.reporting import Report, report
    from hotswap.sharing import push_to_hub
    from hotswap.sliding import register_padding
    from hotswap.targets.plan import Plan, Swap
else:
    # Where each name is, which is imported when it is first asked for: torch takes seconds, and help needs none.
    _MODULES = {
        "hotswap.api": ("apply", "convert", "plan", "revert"),
        "hotswap.checkpoint": ("load", "save"),
        "hotswap.errors": ("HotswapError",),
        "hotswap.exporter": ("Exported", "export"),
        "hotswap.leaves": ("register_concrete_args", "register_leaf"),
        "hotswap.measure.calibrate": ("Calibration", "calibrate"),
        "hotswap.measure.inspect": ("Inspection", "inspect"),
        "hotswap.measure.status": ("Status", "status"),
        "hotswap.measure.verify": ("Verification", "verify"),
        "hotswap.reporting": ("Report", "report"),
        "hotswap.sharing": ("push_to_hub",),
        "hotswap.sliding": ("register_padding",),
        "hotswap.targets.plan": ("Plan", "Swap"),
    }
    _MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

    def __getattr__(name):
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        found = globals()[name] = getattr(import_module(_MODULE_OF[name]), name)
        return found

    def __dir__():
        return sorted({*globals(), *__all__})


__version__ = "0.1.0"
__all__ = [
    "Calibration",
    "Exported",
    "HotswapError",
    "Inspection",
    "Plan",
    "Report",
    "Status",
    "Swap",
    "Verification",
    "apply",
    "calibrate",
    "convert",
    "export",
    "inspect",
    "load",
    "plan",
    "push_to_hub",
    "register_concrete_args",
    "register_leaf",
    "register_padding",
    "report",
    "revert",
    "save",
    "status",
    "verify",
]
