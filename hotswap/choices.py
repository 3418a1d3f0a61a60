"""Choices that are named by words. Imports no torch, so that other words are refused at once."""

from hotswap.network.names import AUTO

FX, HOOKS = "fx", "hooks"  # how a plan is carried out: see `surgery.graph` and `surgery.hooks`
METHODS = (AUTO, FX, HOOKS)
RESIZE_MODES = ("bilinear", "area", "nearest")  # how a guide gets its target's size
CONSERVE_MODES = ("mean", "window")  # how responses are conserved where kernels are below 1
FOOTPRINTS = (2, 4, 6, 8)  # coarse pixels along an axis that a step of a guided enlargement weighs: those of pac_ops
LAB, RGB = "lab", "rgb"  # guide spaces
SPACES = (AUTO, LAB, RGB)
LABELS, MAPS = "labels", "maps"  # how a report draws outputs
OUTPUTS = (AUTO, LABELS, MAPS)
ONNX, PROGRAM = "onnx", "exported-program"  # what is exported
EXPORTS = (ONNX, PROGRAM)
MIOU, IOU, EDGES, RMSE, EPE = "miou", "iou", "edges", "rmse", "epe"  # what a search chooses by
METRICS = (AUTO, MIOU, IOU, EDGES, RMSE, EPE)
SCORES, DEPTH = "scores", "depth"  # what a map that is enlarged by itself holds, beside LABELS
MAP_KINDS = (AUTO, SCORES, LABELS, DEPTH)
