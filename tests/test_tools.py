"""Pages and pictures that the docs are made of."""

import click
import numpy as np
import pytest
from PIL import Image

from tools import pictures, site
from tools.check_dist import ROOT

COMMITTED = ROOT / "docs" / "pictures"


@pytest.fixture(scope="module")
def photo():
    return pictures.photograph("coffee")[..., pictures.ROWS, pictures.COLUMNS]


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_committed_pictures_are_what_the_library_draws(photo, name):
    drawn = np.asarray(pictures.PICTURES[name](photo)).astype(int)
    with Image.open(COMMITTED / f"{name}.jpg") as image:
        committed = np.asarray(image).astype(int)
    assert committed.shape == drawn.shape
    assert np.abs(committed - drawn).mean() < 3  # JPEG's loss


def test_the_reference_of_commands_has_those_of_all_packages():
    text = site.commands()
    for name in ("hotswap", "hotswap convert", "hotswap finetune", "hotswap data check"):
        assert f"\n## {name}\n" in text
    assert "--learn-scale" in text


@pytest.mark.parametrize("package", site.PACKAGES)
def test_the_reference_of_a_package_has_all_it_exports_by_where_it_is(package):
    text = site.api(package)
    assert "::: hotswap.api.convert" in text or "::: pac_ops.functional.kernel.packernel2d" in text
    assert text.count(":::") == len(__import__(package).__all__)


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("[a](swapping.md#b) ![c](pictures/d.jpg)", "[a](swapping.md#b) ![c](pictures/d.jpg)"),
        ("[the rows](../benchmarks/results/x.csv)", "the rows (`benchmarks/results/x.csv`)"),
        ("[runs](tools/attack/README.md)", "runs (`tools/attack/README.md`)"),
        ("[map](docs/architecture.md)", "[map](architecture.md)"),
        ("[log](CHANGELOG.md)", "[log](changelog.md)"),
    ],
)
def test_links_lead_to_pages_of_the_site(markdown, expected):
    assert site.on_page_markdown(markdown) == expected


def test_pages_that_are_not_written_are_not_in_the_menu():
    nav = ["index.md", {"A": [{"B": "b.md"}, {"C": "c.md"}]}, {"D": [{"E": "e.md"}]}]
    assert site.written(nav, {"index.md", "c.md"}) == ["index.md", {"A": [{"C": "c.md"}]}]


def test_help_texts_have_the_full_name_of_their_command():
    found = dict(site.helps("top", click.Group("top", [click.Command("below", help="Does it.")])))
    assert found["top below"].startswith("Usage: top below")
