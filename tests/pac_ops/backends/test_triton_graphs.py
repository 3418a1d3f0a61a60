"""What a captured CUDA graph, other streams and other devices ask of launches; with none of them at hand."""

import contextlib

import pytest
import torch
from interpreted import INTERPRETED, triton
from oracle import Case
from triton_calls import OPERATORS, calls, run

from benchmarks.stubbed import stubbed
from pac_ops.backends import triton as backend
from pac_ops.backends.triton import launch
from pac_ops.enlargement import Enlargement

pytestmark = pytest.mark.skipif(INTERPRETED, reason="the same in either process")
GPU = torch.device("cuda", 1)


def held(plan):
    """The tensors that a plan's launches take beside those of a call."""
    if isinstance(plan, launch.Launch):
        return [x for x in plan._others if isinstance(x, torch.Tensor)]
    parts = plan if isinstance(plan, tuple) else ()
    return [x for part in parts for x in held(part)]


def test_plans_hold_no_tensors_but_tables_of_enlargements():
    """A graph may outlive a plan: what it reads must be its own, or the caller's."""
    where = Enlargement(None, False, 2)
    coarse, fine = torch.empty(1, 3, 4, 4), torch.empty(1, 3, 8, 8)
    with stubbed():
        for operator in OPERATORS:
            for name, arguments in calls(operator, Case(channels=32, out_channels=32), torch.float32):
                run(backend, name, arguments)
        plans = list(launch.PLANS.values())
        assert len(plans) > len(OPERATORS)
        assert not [plan for plan in plans if held(plan)]
        launch.PLANS.clear()
        backend.guided_resize2d(coarse, fine, coarse, where, 1.0, False)
        (plan,) = launch.PLANS.values()
    assert len(held(plan)) == 4


@pytest.mark.parametrize("capturing", [False, True])
def test_tables_are_made_anew_while_a_graph_is_captured(capturing, monkeypatch):
    """In the graph's own memory; and they are no one else's."""
    monkeypatch.setattr(launch, "PLANS", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)

    def make(device, key):
        return torch.zeros(1)

    before = launch.planned_with_tensors(make, GPU, "key")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    meanwhile = launch.planned_with_tensors(make, GPU, "key")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert (meanwhile is before) != capturing
    assert launch.planned_with_tensors(make, GPU, "key") is before


def test_a_launch_is_made_on_its_device_and_the_stream_at_hand(monkeypatch):
    """Another device may be the current one; and each call asks for the stream."""
    at, entered, ran, streams = [0], [], [], iter((11, 12, 13))

    @contextlib.contextmanager
    def device(index):
        before, at[0] = at[0], index
        entered.append(index)
        yield
        at[0] = before

    class Compiled:
        function = packed_metadata = None

        @staticmethod
        def run(x, y, z, stream, *_):
            ran.append((at[0], stream))

    class Driver:
        get_current_stream = staticmethod(lambda index: next(streams) + 100 * index)

    driver = triton.runtime.driver
    monkeypatch.setattr(driver, "_active" if hasattr(driver, "_active") else "active", Driver())
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: at[0])
    kernel = type("Kernel", (), {"arg_names": ["x", "n"]})()
    there = launch.Launch(kernel, (1,), {"n": 1}, GPU)
    compiled = []
    monkeypatch.setattr(there, "_through_triton", lambda given: compiled.append(at[0]) or Compiled())
    x = torch.zeros(8)
    there(x)  # compiles, on its device
    there(x)
    at[0] = 1
    there(x)
    at[0] = 0
    there(x)
    assert compiled == [1]
    assert ran == [(1, 111), (1, 112), (1, 113)]
    assert entered == [1, 1, 1]  # not where it is the current one
