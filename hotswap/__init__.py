"""Swap convolutions of a trained network for pixel-adaptive ones, weights kept.

model = hotswap.convert(model, targets=["conv3_3", "conv4_3", "conv5_3"], guide="conv2_2")
"""

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
