"""Networks to report on, and the page that is made."""

from html.parser import HTMLParser
from pathlib import Path

import networks
import torch
from torch import nn

import hotswap

ANYTHING = nn.Module()  # may be given
IMAGES = torch.rand(2, 3, 24, 32, generator=torch.Generator().manual_seed(1))
VOID = {"meta", "img", "rect", "path", "circle", "br", "input", "link"}


class Page(HTMLParser):
    """A page as a browser sees it; fails where elements are not closed in turn."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.texts, self.stack = [], [], []
        self.source = Path(path).read_text("utf-8")
        self.feed(self.source)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if "style" not in self.stack:
            self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self):
        return " ".join("".join(self.texts).split())


def converted(scale=1.0):
    return hotswap.convert(networks.Plain(), "target", "guide", guide_scale=scale, example_inputs=IMAGES[:1])
