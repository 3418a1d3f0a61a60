"""Example calls of every registered operator."""

import torch

import pac_ops

OPS = torch.ops.pac_ops

CONFIGS = [
    ([1, 1], [1, 1], [1, 1], 1),
    ([2, 1], [1, 2], [1, 2], 2),
]


def tensors(config, size, dtype):
    stride, padding, dilation, groups = config
    v = torch.randn(size[0], 2, *size[1:], dtype=dtype)
    f = torch.randn(size[0], 2, *size[1:], dtype=dtype) / 2
    w = torch.randn(4, 2 // groups, 3, 3, dtype=dtype)
    b = torch.randn(4, dtype=dtype)
    k = pac_ops.packernel2d(f, None, 3, tuple(stride), tuple(padding), dilation=tuple(dilation))[0]
    g = torch.randn(size[0], 4, *k.shape[-2:], dtype=dtype)
    over = torch.rand(size[0], 1, 3, 3, *size[1:], dtype=k.dtype)
    return tuple(t.detach().requires_grad_() for t in (v, f, k, over, w, b, g))


def arguments(op, config, size, dtype):
    """Example calls of a registered operator, every tensor requiring its gradient."""
    v, f, k, over, w, b, g = tensors(config, size, dtype)
    *window, groups = config
    sizes = [[3, 3], *window]
    turned = w.detach().transpose(0, 1).reshape(4, 2 // groups, 3, 3).contiguous().requires_grad_()
    small = torch.randn(size[0], 2, 2, 2, dtype=dtype, requires_grad=True)  # f made coarse
    enlargements = [(None, False, 2, 0), ([1.7, 1.7], True, 4, 0), (None, False, 2, 1)]
    enlargements = enlargements[:: 2 if dtype == torch.float64 else 1]  # of 16 neighbours, gradients take too long

    def weights(where):
        return torch.rand(size[0], 1, where[2], where[2], *size[1:], dtype=k.dtype, requires_grad=True)

    all_needs = [[True, True, True], [False, True, False], [True, False, True]]
    match op:
        case "squared_distance2d" | "gaussian_kernel2d":
            return [(f, *sizes)]
        case "squared_distance2d_backward":
            return [(k, f, *sizes)]
        case "pacconv2d":
            return [(v, k, w, b, *window, groups), (v, k, w, None, *window, groups)]
        case "pacconv2d_or_plain":  # open, as a closed one is constant in K
            return [(v, k, w, b, torch.tensor(True), *window, groups)]
        case "pacconv2d_backward":
            return [(g, v, k, w, *window, groups, needs) for needs in all_needs]
        case "pacconv_transpose2d":  # from g's size back to v's
            bias = b.detach()[:2].requires_grad_()
            return [(g, over, turned, bias, *window, groups), (g, over, turned, None, *window, groups)]
        case "pacconv_transpose2d_or_plain":
            return [(g, over, turned, None, torch.tensor(True), *window, groups)]
        case "pacconv_transpose2d_backward":
            return [(v, g, over, turned, *window, groups, needs) for needs in all_needs]
        case "pacpool2d":
            by_channel = k.detach().repeat(1, 2, 1, 1, 1, 1).requires_grad_()
            return [(v, k, *window), (v, by_channel, *window)]
        case "pacpool2d_backward":
            return [(g[:, :2], v, k, *window, needs) for needs in ([True, True], [False, True], [True, False])]
        case "resize_distance2d":
            return [(f, small, *where) for where in enlargements]
        case "resize_distance2d_backward":
            return [(weights(where), f, small, *where) for where in enlargements]
        case "pacresize2d":
            return [(small, weights(where), *where) for where in enlargements]
        case "pacresize2d_backward":
            needs = ([True, True], [False, True], [True, False])
            return [(f, small, weights(where), *where, which) for where in enlargements for which in needs]
    raise AssertionError(f"{op} is registered and has no example here")


REGISTERED = sorted(
    schema.name.removeprefix("pac_ops::")
    for schema in torch._C._jit_get_all_schemas()
    if schema.name.startswith("pac_ops::")
)
