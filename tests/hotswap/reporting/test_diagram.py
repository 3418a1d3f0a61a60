"""The network as it is drawn."""

from reported import ANYTHING, IMAGES
from torch import nn

import hotswap
from hotswap.network.dry_run import observe
from hotswap.reporting import diagram, outline, samples


class Deep(nn.Module):
    """Blocks in stages, as in a residual network."""

    def __init__(self, blocks):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.stage = nn.Sequential(*(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()) for _ in range(blocks)))
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.head(self.stage(self.stem(x)))


def rows_of(model):
    sample = next(samples.from_batches(ANYTHING, IMAGES, 1).items)
    return outline.outline(model, hotswap.status(model).plan, observe(model, IMAGES[:1]), sample)


def test_all_but_guides_and_targets_is_folded():
    model = hotswap.convert(Deep(30), "stage.25.0", "stage.3.0", guide_scale=1.0, method="fx")
    rows = rows_of(model)
    assert len(rows) < 15
    assert [row.key for row in rows if row.kind in (outline.TARGET, outline.GUIDE)] == ["stage.3.0", "stage.25.0"]
    assert rows[-2].label == "head"
    assert "4 to 24" in [row.label for row in rows]
    assert rows[0].size == "3 × 24 × 32"


def test_many_targets_are_drawn_densely():
    model = hotswap.convert(Deep(25), "stage.*.0", {"stage.[0-2]*": "stem", "*": "input"}, guide_scale=1.0)
    rows = rows_of(model)
    assert len(rows) < 35
    drawing = diagram.draw(rows)
    assert not drawing.is_long
    assert len(drawing.lanes) == 2
    assert drawing.lanes[0].x != drawing.lanes[1].x  # which overlap
    assert sum(len(lane.targets) for lane in drawing.lanes) == 25
    assert all(box.right < lane.x < drawing.width for lane in drawing.lanes for box in drawing.boxes)
