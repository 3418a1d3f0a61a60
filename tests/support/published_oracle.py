"""The published networks in plain torch, from the weights of their files: what the page of differences and the paper say.

Written without our layers, networks or converter, to be run in float64.
"""

import torch
import torch.nn.functional as F

STAGES = {1: 2, 2: 2, 3: 3, 4: 3, 5: 3}  # convolutions of VGG16
SWAPPED = ("conv3_3", "conv4_3", "conv5_3")


def taps(x, size, dilation=1):
    """[B, C, H, W] -> [B, C, size * size, H, W], zero outside the image."""
    b, c, h, w = x.shape
    return F.unfold(x, size, dilation=dilation, padding=dilation * (size // 2)).view(b, c, size * size, h, w)


def adapting(guide, size, dilation=1):
    """exp(-|f_j - f_i|^2 / 2), [B, size * size, H, W]."""
    return (-0.5 * (taps(guide, size, dilation) - guide[:, :, None]).square().sum(1)).exp()


def pac(x, kernel, weight, bias=None, dilation=1):
    size = weight.shape[-1]
    out = torch.einsum("bcthw,bthw,oct->bohw", taps(x, size, dilation), kernel, weight.flatten(2))
    return out if bias is None else out + bias[:, None, None]


def pac_transposed(x, guide, weight, bias):
    """Zeros between the pixels, then correlation with the weight as it is in the file, [in, out, k, k]."""
    b, c, h, w = x.shape
    spread = x.new_zeros(b, c, 2 * h, 2 * w)
    spread[:, :, ::2, ::2] = x
    return pac(spread, adapting(guide, weight.shape[-1]), weight.transpose(0, 1), bias)


def layer(state, name, x, padding):
    return F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), padding=padding)


def chain(state, names, x, paddings):
    """Convolutions with a ReLU between them."""
    for index, (name, padding) in enumerate(zip(names, paddings, strict=True)):
        x = layer(state, name, x.relu() if index else x, padding)
    return x


def upsampling(state, low, guide):
    """PacJointUpsample and its lite form, every channel by itself."""
    steps = sum(name.startswith("up_convts.") and name.endswith("weight") for name in state)
    features = chain(state, [f"branch_g.conv{i}" for i in (1, 2, 3)], guide, [2] * 3).chunk(steps, dim=1)
    channels = []
    for x in low.split(1, dim=1):
        x = chain(state, [f"branch_t.conv{i}" for i in (1, 2, 3)], x, [2] * 3)
        for step in range(steps):
            size = (2 * x.shape[2], 2 * x.shape[3])
            seen = F.interpolate(features[step], size, mode="bilinear", align_corners=False)
            x = pac_transposed(x, seen, state[f"up_convts.{step}.weight"], state[f"up_convts.{step}.bias"]).relu()
        channels.append(chain(state, ["branch_f.conv1", "branch_f.conv2"], x, [2] * 2))
    return torch.cat(channels, dim=1)


def djif(state, low, guide):
    """The coarse map is enlarged bilinearly."""
    seen = chain(state, [f"branch_g.{i}" for i in (0, 2, 4)], guide, [2] * 3)
    enlarged = F.interpolate(low, guide.shape[2:], mode="bilinear", align_corners=False)
    channels = []
    for x in enlarged.split(1, dim=1):
        x = chain(state, [f"branch_t.{i}" for i in (0, 2, 4)], x, [2] * 3)
        channels.append(chain(state, [f"branch_joint.{i}" for i in (0, 2, 4)], torch.cat((x, seen), 1), (4, 0, 2)))
    return torch.cat(channels, dim=1)


def fcn8s(state, image, form):
    """Form: fcn8s (padded by 100), fcn8saltpad (by 1), or fcn8spac, hot-swapped and ending in an interpolation."""
    original = form == "fcn8s"
    x, guide, skips = image, None, {}
    for stage, count in STAGES.items():
        for index in range(1, count + 1):
            name = f"conv{stage}_{index}"
            if form == "fcn8spac" and name in SWAPPED:
                seen = 1e-4 * F.interpolate(guide, x.shape[2:], mode="bilinear", align_corners=False)
                x = pac(x, adapting(seen, 3), state[f"{name}.weight"], state[f"{name}.bias"])
            else:
                x = layer(state, name, x, 100 if original and name == "conv1_1" else 1)
            x = x.relu()
            if name == "conv2_2":
                guide = x
        x = skips[stage] = F.max_pool2d(x, 2, ceil_mode=True)
    x = layer(state, "fc6", x, 0 if original else 3).relu()
    x = layer(state, "score_fr", layer(state, "fc7", x, 0).relu(), 0)
    for enlarge, score, stage, crop in (("upscore2", "score_pool4", 4, 5), ("upscore_pool4", "score_pool3", 3, 9)):
        x = F.conv_transpose2d(x, state[f"{enlarge}.weight"], stride=2, padding=0 if original else 1)
        skip = layer(state, score, skips[stage], 0)
        if original:
            skip = skip[:, :, crop : crop + x.shape[2], crop : crop + x.shape[3]]
        x = x[:, :, : skip.shape[2], : skip.shape[3]] + skip
    if form == "fcn8spac":
        return F.interpolate(x, scale_factor=8, mode="bilinear", align_corners=False)
    x = F.conv_transpose2d(x, state["upscore8.weight"], stride=8, padding=0 if original else 4)
    first = 31 if original else 0
    return x[:, :, first : first + image.shape[2], first : first + image.shape[3]]


def crf(state, unary, image, dilations, steps, *, blur=1, unary_weight=1.0):
    """Behind a backbone: guides are the image, 0..255 in BGR, over three scales each; a step's weights may be its own."""
    log_q = unary
    for step in range(steps):
        prefix = f"crf.steps.{step}." if f"crf.steps.{step}.pairwise_weights.0" in state else "crf."
        q = F.avg_pool2d(log_q.softmax(1), blur)
        log_q = unary * state.get(f"{prefix}unary_weight", torch.tensor(unary_weight))
        for index, dilation in enumerate(dilations):
            seen = F.avg_pool2d(image / state[f"feat_scales.{index}"][:, None, None], blur)
            weight = state[f"{prefix}messengers.{index}.weight"]
            if weight.shape[0] == 1:  # one filter for all classes
                weight = weight * torch.eye(q.shape[1], dtype=q.dtype)[:, :, None, None]
            message = pac(q, adapting(seen, weight.shape[-1], dilation), weight, dilation=dilation)
            if f"{prefix}compat.{index}.weight" in state:
                message = F.conv2d(message, state[f"{prefix}compat.{index}.weight"])
            if blur > 1:
                message = F.interpolate(message, scale_factor=blur, mode="bilinear", align_corners=False)
            log_q = log_q - state[f"{prefix}pairwise_weights.{index}"] * message
    return log_q
