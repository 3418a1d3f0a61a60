"""What is worked out once for calls alike is worked out again for any other."""

import pytest
import torch

import pac_ops
from pac_ops import settled


@pytest.fixture
def counted(monkeypatch):
    """A check that counts its calls, and refuses what is not an integer."""
    monkeypatch.setattr(settled, "_settled", {})

    def check(x, other, number, pair=(1, 1)):
        check.calls += 1
        if type(number) is not int or any(type(n) is not int for n in pair):
            raise TypeError("no integer")
        return (number,)

    check.calls = 0
    return check


X = torch.rand(1, 2, 3, 4)


@pytest.mark.parametrize(
    ("x", "other"),
    [
        (torch.rand(1, 2, 4, 3), None),
        (X.double(), None),
        (X.to("meta"), None),
        (X, X),
    ],
    ids=["shape", "dtype", "device", "given"],
)
def test_another_tensor_is_checked(counted, x, other):
    for _ in range(2):
        settled.settled(counted, (X, None), 1)
    assert counted.calls == 1
    settled.settled(counted, (x, other), 1)
    assert counted.calls == 2


@pytest.mark.parametrize("options", [(1.0,), (True,), (1, (1.0, 1)), (torch.tensor(1),)], ids=repr)
def test_what_equals_an_option_is_not_one(counted, options):
    settled.settled(counted, (X, None), 1, (1, 1))
    settled.settled(counted, (X, None), 1)
    with pytest.raises(TypeError, match="no integer"):
        settled.settled(counted, (X, None), *options)


def test_options_that_have_no_hash_are_checked_each_time(counted):
    assert [settled.settled(counted, (X, None), 2, [1, 1]) for _ in range(2)] == [(2,), (2,)]
    assert counted.calls == 2


def test_a_subclass_is_checked_each_time(counted):
    own = X.as_subclass(type("Own", (torch.Tensor,), {}))
    for _ in range(2):
        settled.settled(counted, (own, None), 1)
    assert counted.calls == 2


def test_other_sizes_do_not_fill_the_memory(counted, monkeypatch):
    monkeypatch.setattr(settled, "KEPT", 4)
    for n in range(20):
        settled.settled(counted, (torch.empty(1, 1, 1, n), None), 1)
    assert len(settled._settled) <= 4


def test_autocast_lets_other_dtypes_pass_and_only_while_it_is_on():
    x, weight = torch.rand(1, 3, 6, 6), torch.rand(3, 3, 3, 3, dtype=torch.bfloat16)
    kernel = torch.rand(1, 1, 3, 3, 4, 4)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            assert pac_ops.pacconv2d(x, kernel, weight).dtype == torch.bfloat16
        with pytest.raises(TypeError, match="weight must have the input's dtype"):
            pac_ops.pacconv2d(x, kernel, weight)
