"""An installation looked over."""

import json

import pytest
from click.testing import CliRunner

import hotswap
from hotswap import doctor
from hotswap.cli import main
from pac_ops.backends import blocked, choose


def test_this_installation_is_healthy():
    found = doctor.doctor()
    assert found.healthy
    assert found.versions["hotswap"] == hotswap.__version__
    assert {b.name for b in found.backends if b.device == "cpu"} == set(choose.BACKENDS)
    usable = {b.name for b in found.backends if b.why_not is None} - {"reference"}
    assert {(c.backend, c.operator) for c in found.checks if c.device == "cpu"} >= {
        (name, operator) for name in usable for operator in doctor._OPERATORS
    }
    assert all(0 <= c.largest_error < 1e-5 for c in found.checks)
    assert "all operators compute what they should" in str(found)


@pytest.fixture
def wrong(monkeypatch):
    right = blocked.pacpool2d
    monkeypatch.setattr(blocked, "pacpool2d", lambda *arguments: right(*arguments) * 1.01)
    nothing = blocked.pacconv2d
    for module in (blocked, blocked.convolution):
        monkeypatch.setattr(module, "pacconv2d", lambda *arguments: nothing(*arguments) * float("nan"))

    def broken(*arguments):
        raise RuntimeError("no such instruction\nmore")

    monkeypatch.setattr(blocked, "pacresize2d", broken)


def test_wrong_and_failing_operators_are_named(wrong):
    found = doctor.doctor()
    assert not found.healthy
    bad = {c.operator: c for c in found.checks if c.backend == "cpu" and not c.passed}
    # The transposed convolution is made of the convolution, which gives NaN.
    assert bad.keys() == {"PacConv2d", "PacConvTranspose2d", "PacPool2d", "PacResize2d"}
    assert 0.005 < bad["PacPool2d"].largest_error < 0.02
    assert bad["PacResize2d"].failure == "RuntimeError: no such instruction"
    assert "wrong: more than 1e-04" in str(found)
    result = CliRunner().invoke(main, ["doctor", "--json"])
    assert result.exit_code == 1
    assert json.loads(result.stdout)["healthy"] is False  # inf would be no JSON
    assert "Error: some operators fail here" in result.stderr


def test_the_command():
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 0, result.output
    assert "PacConvTranspose2d" in result.stdout
