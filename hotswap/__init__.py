"""Swap convolutions of a trained network for pixel-adaptive ones, weights kept.

model = hotswap.convert(model, targets=["conv3_3", "conv4_3", "conv5_3"], guide="conv2_2")
"""

from hotswap.api import apply, convert, plan, revert
from hotswap.calibrate import Calibration, calibrate
from hotswap.checkpoint import load, save
from hotswap.errors import HotswapError
from hotswap.export import Exported, export
from hotswap.inspect import Inspection, inspect
from hotswap.leaves import register_concrete_args, register_leaf
from hotswap.report import Report, report
from hotswap.sharing import push_to_hub
from hotswap.sliding import register_padding
from hotswap.status import Status, status
from hotswap.targets.plan import Plan, Swap
from hotswap.verify import Verification, verify

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
