"""Runs in processes of their own: killed outright, and two that train one network."""

import json
import os
import signal
import socket
import time

import pytest
import torch
from tiny_recipe import arguments, finetune, process, same, weights, written

SAVED_OFTEN = {"save_every": 1, "steps": 40, "evaluation": {"every": 7}, "ema": 0.9, "optimiser": {"lr": 1e-3}}


# As in the processes, or sums are in another order.
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("ended_by", "exit_code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 1)], ids=["killed", "ctrl-c"]
)
def test_a_run_that_was_ended_goes_on_to_the_same_weights(ended_by, exit_code, tmp_path):
    path, out = written(tmp_path, **SAVED_OFTEN), tmp_path / "killed"
    running = process(arguments(path, out))
    deadline = time.monotonic() + 120
    while not (out / "state.pt").exists():  # from here on it is killed somewhere between, or in, its writes
        assert running.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(0.05)
    os.kill(running.pid, ended_by)
    running.join()
    assert running.exitcode == exit_code
    assert not (out / "result.json").exists()
    finetune(path, out, resume=True)
    finetune(path, tmp_path / "whole")
    for name in ("last.safetensors", "best.safetensors"):
        assert same(weights(out, name), weights(tmp_path / "whole", name))
    killed, whole = (json.loads((tmp_path / x / "result.json").read_text()) for x in ("killed", "whole"))
    assert killed["metrics"] == whole["metrics"]
    assert killed["best"] == whole["best"]


@pytest.mark.parametrize("norm", [False, True], ids=["no norm", "batch norm"])
def test_two_processes_reach_the_weights_of_one(norm, tmp_path):
    changes = {
        "model": {"name": "tiny_recipe:Small", "options": {"dropout": 0.0, "norm": norm}},
        "swaps": [{"targets": "second", "guide": "input", "learn_scale": True}],
        "calibration": {"batches": 1},
        "accumulation": 2,
        "optimiser": {"name": "sgd", "lr": 0.1, "clip": 0.5},
        "ema": 0.5,
        "batch_size": 4,
        "evaluation": {"every": 4},
    }
    path = written(tmp_path, **changes)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    both = [
        process(
            arguments(path, tmp_path / "two"),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
            WORLD_SIZE="2",
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            ACCELERATE_USE_CPU="true",
        )
        for rank in (0, 1)
    ]
    for running in both:
        running.join(timeout=200)
    assert [running.exitcode for running in both] == [0, 0]
    finetune(path, tmp_path / "one")
    one, two = (json.loads((tmp_path / x / "result.json").read_text()) for x in ("one", "two"))
    assert two["machine"]["processes"] == 2
    start = finetune(path, tmp_path / "start", max_steps=1)[""]
    assert one["history"][-1]["loss"] < start["history"][-1]["loss"]
    assert two["history"][-1]["loss"] == pytest.approx(one["history"][-1]["loss"], abs=1e-5)
    for key, value in one["metrics"].items():
        assert two["metrics"][key] == pytest.approx(value, abs=0.02)  # a pixel on the line between two classes
    found, wanted = weights(tmp_path / "two"), weights(tmp_path / "one")
    for key, x in wanted.items():
        torch.testing.assert_close(found[key], x, rtol=0, atol=1e-5)
