"""method="hooks": passes of several threads and replicas."""

import threading

import torch
import torch.nn.functional as F
from by_hooks import nothing_is_kept, staged
from networks import conv
from swap_by_hand import close, pac, swap
from torch import nn

import hotswap


def test_a_network_called_inside_itself(image):
    class Pyramid(nn.Module):
        def __init__(self):
            super().__init__()
            self.guide, self.target = conv(3), conv()

        def forward(self, x):
            g = self.guide(x)
            coarse = F.interpolate(self(x[..., ::2, ::2]), x.shape[2:]) if x.shape[2] > 8 else 0
            return self.target(g) + coarse

    net = Pyramid()
    converted = swap(net)
    small = image[..., ::2, ::2]
    a, b = net.guide(image), net.guide(small)
    expected = pac(net.target, a, a) + F.interpolate(pac(net.target, b, b), image.shape[2:])
    assert hotswap.status(converted).plan.method == "hooks"
    close(converted(image), expected)
    assert nothing_is_kept(converted)


def together(calls):
    """Results of functions run in threads that wait for each other at every guide."""
    results, errors = [None] * len(calls), []

    def run(index):
        try:
            results[index] = calls[index]()
        except Exception as error:  # noqa: BLE001 (shown by the caller)
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    return results


def test_threads_do_not_see_each_others_guides():
    converted = staged()
    images = [torch.randn(2, 3, 12, 10) for _ in range(4)]
    expected = [converted(x) for x in images]
    barrier = threading.Barrier(4)
    handle = converted.second[0].register_forward_pre_hook(lambda *a: (barrier.wait(20), None)[1])
    results = together([lambda x=x: converted(x) for x in images])
    features = together([lambda x=x: converted.third(converted.forward_features(x)) for x in images])
    handle.remove()
    for ours, also, alone in zip(results, features, expected, strict=True):
        close(ours, alone)
        close(also, alone)
    assert nothing_is_kept(converted)


def test_replicas_of_data_parallel_share_hooks_but_no_guides():
    """What nn.DataParallel does, without the GPUs it asks for."""
    converted = staged()

    def replicate(module):
        replica = module._replicate_for_data_parallel()
        replica._parameters = dict(module._parameters)
        replica._modules = {name: replicate(child) for name, child in module._modules.items()}
        return replica

    images = [torch.randn(2, 3, 12, 10) for _ in range(3)]
    replicas = [replicate(converted) for _ in images]
    results = together([lambda x=x, m=m: m(x) for x, m in zip(images, replicas, strict=True)])
    for ours, x in zip(results, images, strict=True):
        close(ours, converted(x))
