"""Three rivals from their equations, which solve or fit something for each image."""

import itertools
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import cg
from torch import Tensor

_ROUNDS = 20  # of making the blur of a bilateral grid doubly stochastic
_ITERATIONS = 25  # of conjugate gradients


def bilateral_solver(
    scores: Tensor, yuv: Tensor, strength: float, reach: float, luma: float, chroma: float
) -> Tensor:
    """The smoothest map near the scores, on a bilateral grid (Barron and Poole, 2016).

    argmin over x of strength/2 sum_ij W_ij (x_i - x_j)^2 + sum_i (x_i - t_i)^2, W the grid's doubly stochastic blur.

    Args:
        scores: t, [C, H, W].
        yuv: luma and two of chroma, [3, H, W], in 0..255.
        strength: of the smoothness.
        reach: pixels a cell of the grid is wide and high.
        luma: of a cell.
        chroma: of a cell.
    """
    height, width = scores.shape[1:]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack([rows / reach, columns / reach, yuv[0] / luma, yuv[1] / chroma, yuv[2] / chroma])
    cells, of_pixel = np.unique(places.round().long().flatten(1).numpy(), axis=1, return_inverse=True)
    count = cells.shape[1]
    splat = sp.csr_matrix((np.ones(of_pixel.size), (of_pixel.ravel(), np.arange(of_pixel.size))))
    blur = _blur(cells)
    mass, n = np.asarray(splat.sum(1)).ravel(), np.ones(count)
    for _ in range(_ROUNDS):
        n = np.sqrt(n * mass / (blur @ n))
    system = strength * (sp.diags(mass) - sp.diags(n) @ blur @ sp.diags(n)) + sp.diags(mass)
    inverse = sp.diags(1 / system.diagonal())
    solved = []
    for target in scores.flatten(1).double().numpy():
        splatted = splat @ target
        cell, _ = cg(system, splatted, x0=splatted / mass, rtol=1e-5, maxiter=_ITERATIONS, M=inverse)
        solved.append(cell[of_pixel.ravel()])
    return torch.from_numpy(np.stack(solved)).view(len(solved), height, width)


def _blur(cells: np.ndarray[Any, np.dtype[np.int64]]) -> sp.csr_matrix:
    """The sum over a grid's dimensions of a blur by 1 2 1 between the cells that there are, [N, N]."""
    dimensions, count = cells.shape
    spans = cells.max(1) - cells.min(1) + 3
    strides = np.concatenate([np.cumprod(spans[::-1])[::-1][1:], [1]])
    keys = ((cells - cells.min(1, keepdims=True) + 1) * strides[:, None]).sum(0)
    order = np.argsort(keys)
    blur = sp.identity(count, format="csr") * (2.0 * dimensions)
    for stride in strides:
        at = np.searchsorted(keys, keys + stride, sorter=order).clip(max=count - 1)
        beside = order[at]
        here = np.flatnonzero(keys[beside] == keys + stride)
        pairs = sp.csr_matrix((np.ones(len(here)), (here, beside[here])), (count, count))
        blur = blur + pairs + pairs.T
    return blur.tocsr()


def label_propagation(scores: Tensor, lab: Tensor, alpha: float, width: float, radius: int = 6) -> Tensor:
    """(I - alpha S)^-1 Y: labels propagated between pixels alike, as LPOSS+ does (Stojnic et al., CVPR 2025).

    S is W, normalised symmetrically by its rows' sums, W_ij = exp(-|c_i - c_j| / width) within the window.

    Args:
        scores: Y, [C, H, W].
        lab: c, [3, H, W].
        alpha: how much is propagated.
        width: of the affinity.
        radius: of the window; theirs is 13 x 13.
    """
    # Each pair of pixels once: offsets below, and to the right in the same row.
    offsets = [
        (down, right)
        for down, right in itertools.product(range(radius + 1), range(-radius, radius + 1))
        if down or right > 0
    ]
    pairs = [_pair(lab.shape[1:], down, right) for down, right in offsets]
    affinities = [(-(lab[:, *a] - lab[:, *b]).norm(dim=0) / width).exp() for a, b in pairs]
    degree = torch.zeros(lab.shape[1:])
    for (a, b), weight in zip(pairs, affinities, strict=True):
        degree[a] += weight
        degree[b] += weight
    root = degree.rsqrt()
    affinities = [weight * root[a] * root[b] for (a, b), weight in zip(pairs, affinities, strict=True)]

    def system(x: Tensor) -> Tensor:
        around = torch.zeros_like(x)
        for (a, b), weight in zip(pairs, affinities, strict=True):
            around[:, *a].addcmul_(weight, x[:, *b])
            around[:, *b].addcmul_(weight, x[:, *a])
        return x - alpha * around

    return _conjugate_gradients(system, scores)


def _pair(size: torch.Size, down: int, right: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The pixels that have one at this offset, and those at it."""
    height, width = size
    left = max(-right, 0)
    here = (slice(0, height - down), slice(left, width - max(right, 0)))
    there = (slice(down, height), slice(left + right, width + min(right, 0)))
    return here, there


def _conjugate_gradients(system: Any, target: Tensor) -> Tensor:
    """Solve a symmetric system for each channel."""
    x, residual = torch.zeros_like(target), target.clone()
    step, square = residual.clone(), residual.square().sum((1, 2), keepdim=True)
    for _ in range(_ITERATIONS):
        moved = system(step)
        rate = square / (step * moved).sum((1, 2), keepdim=True).clamp_min(1e-20)
        x += rate * step
        residual -= rate * moved
        before, square = square, residual.square().sum((1, 2), keepdim=True)
        step = residual + square / before.clamp_min(1e-20) * step
    return x


def fitted_gaussians(
    scores: Tensor, image: Tensor, align_corners: bool, reach: float, rate: float, steps: int = 50, radius: int = 2
) -> Tensor:
    """A gaussian for each coarse pixel, fitted so that the image's means give the image (Upsample Anything, 2025).

    A fine pixel p is the mean of coarse ones q near it by exp(-d' C_q^-1 d / 2 - |I_p - J_q|^2 / 2 r_q^2), where d is
    p - q, C_q has two deviations and an angle, and J is the image at the coarse size. These four of each q minimise
    the mean of |I - J enlarged|.

    Args:
        scores: [C, h, w].
        image: I, [3, H, W], in 0..1.
        align_corners: where the coarse pixels lie.
        reach: the two deviations at first, in coarse pixels.
        rate: of Adam.
        steps: of Adam.
        radius: of the window, in coarse pixels.
    """
    coarse, fine = scores.shape[1:], image.shape[1:]
    means = F.interpolate(image[None], coarse, mode="bilinear", antialias=True, align_corners=align_corners or None)[
        0
    ]
    (down, rows), (across, columns) = (_near(n, m, align_corners, radius) for n, m in zip(fine, coarse, strict=True))
    inside = (rows >= 0)[:, None, :, None] & (rows < coarse[0])[:, None, :, None]
    inside = inside & (columns >= 0)[:, None] & (columns < coarse[1])[:, None]
    index = rows.clamp(0, coarse[0] - 1)[:, None, :, None] * coarse[1] + columns.clamp(0, coarse[1] - 1)[:, None]
    y, x = (down - rows)[:, None, :, None], (across - columns)[:, None]
    distance = (image[:, None, None] - means.flatten(1)[:, index]).square().sum(0)
    start = torch.tensor([reach, reach, 0.12]).log()[:, None].expand(3, coarse.numel())
    deviations, angle = start.clone().requires_grad_(), torch.zeros(coarse.numel(), requires_grad=True)
    optimiser = torch.optim.Adam([deviations, angle], lr=rate)

    def weights() -> Tensor:
        precision = (-2 * deviations).exp()[:, index]
        cosine, sine = angle.cos()[index], angle.sin()[index]
        along, beside = cosine * x + sine * y, cosine * y - sine * x
        energy = along.square() * precision[0] + beside.square() * precision[1] + distance * precision[2]
        return (-0.5 * energy).masked_fill(~inside, -torch.inf).flatten(0, 1).softmax(0)

    def enlarged(maps: Tensor) -> Tensor:
        return (weights() * maps.flatten(1)[:, index].flatten(1, 2)).sum(1)

    with torch.enable_grad():
        for _ in range(steps):
            loss = (enlarged(means) - image).abs().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    with torch.no_grad():
        return enlarged(scores)


def _near(fine: int, coarse: int, align_corners: bool, radius: int) -> tuple[Tensor, Tensor]:
    """Where fine pixels lie among coarse ones, [fine], and the neighbours of each, [2 radius + 1, fine]."""
    at = torch.arange(fine)
    place = at * (coarse - 1) / max(fine - 1, 1) if align_corners else (at + 0.5) * coarse / fine - 0.5
    return place, place.round().long() + torch.arange(-radius, radius + 1)[:, None]
