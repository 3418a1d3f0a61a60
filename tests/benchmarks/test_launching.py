"""The Python before a launch stays within bounds, and the benchmark of it runs."""

import time

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from benchmarks import launching
from benchmarks.harness import BOTH, FORWARD, Machine
from benchmarks.stubbed import stubbed

# How many times as long as `F.conv2d` of one pixel, which does the same passes, each call may take.
BOUNDS = {
    ("pacconv2d", FORWARD): 7,
    ("PacConv2d", FORWARD): 15,
    ("packernel2d", FORWARD): 4,
    ("pacresize2d", FORWARD): 9.5,
    ("pacconv2d", BOTH): 3.4,
}


ROUNDS, MOST_ROUNDS = 40, 600


def least(calls, times, rounds=ROUNDS, repeats=20):
    """Seconds of a call of each, by the clock of this thread: the least over interleaved rounds, and of those before.

    What runs beside it empties the processor's caches, and so adds to it.
    """
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.thread_time()
            for _ in range(repeats):
                call()
            times[name] = min(times[name], (time.thread_time() - start) / repeats)


def test_little_is_done_before_a_launch():
    with stubbed():
        calls = launching.calls(torch.device("cpu"), torch.bfloat16, last=True)
        times = dict.fromkeys(calls, float("inf"))
        for _ in range(0, MOST_ROUNDS, ROUNDS):
            least(calls, times)
            ratios = {(name, mode): times[name, mode] / times[launching.STOCK, mode] for name, mode in BOUNDS}
            above = {call: ratio for call, ratio in ratios.items() if ratio > BOUNDS[call]}
            if not above:
                break
    assert above == {}


def test_the_benchmark():
    case = next(launching.cases(torch.device("cpu")))
    rows = Machine.at("cpu", 0.1, 3).measure(case)
    assert [row.backend for row in rows] == [f"{launching.OURS}, launches stubbed out", launching.STOCK]
    assert all(0 < row.median < 10 for row in rows)
