"""Cycles that a step of each shipped tile takes, as `tiles` chooses by; counted in `benchmarks/results/sm90.csv`."""

from collections.abc import Mapping

from pac_ops.backends.triton.tiles import FULL, NARROW, TF32, Cycles, Tiles

# Of the sum alone, and with K's gradient.
SUM: dict[str, Mapping[Tiles, int]] = {
    NARROW: {
        (128, 256, 64, 8, 4): 1024,
        (64, 256, 64, 4, 3): 512,
        (128, 128, 64, 8, 4): 668,
        (64, 128, 64, 4, 4): 375,
        (128, 64, 64, 4, 3): 526,
        (64, 64, 64, 4, 4): 330,
    },
    TF32: {
        (128, 128, 32, 8, 3): 524,
        (64, 128, 32, 4, 3): 302,
        (128, 64, 32, 4, 3): 269,
        (64, 64, 32, 4, 3): 261,
    },
    FULL: {(64, 64, 16, 4, 3): 1024, (128, 64, 16, 8, 3): 2048, (64, 32, 32, 4, 3): 1100},
}
WITH_GRADIENT: Cycles = {
    NARROW: {
        (64, 128, 64, 4, 3): 655,
        (128, 128, 64, 8, 3): 1256,
        (128, 64, 64, 4, 3): 733,
        (64, 64, 64, 4, 3): 449,
    },
    TF32: {(64, 64, 32, 4, 3): 437, (128, 64, 32, 8, 3): 900},
    FULL: SUM[FULL],
}

# Of a weight's gradient.
OF_WEIGHT: Cycles = {
    NARROW: {(64, 128, 128, 8, 3): 770, (64, 64, 128, 4, 3): 663, (64, 64, 64, 4, 3): 390},
    TF32: {(32, 64, 64, 4, 3): 256, (32, 128, 64, 8, 3): 512},
    FULL: {(16, 64, 64, 4, 3): 1024, (32, 64, 64, 8, 3): 2048, (32, 32, 32, 4, 3): 600},
}
