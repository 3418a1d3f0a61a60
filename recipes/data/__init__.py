"""Readers of public data sets, in the layouts in which they are distributed.

All are map-style data sets of pairs (image, target): an image is [3, H, W], RGB in 0..1, float32. They read nothing
before it is asked for. Random crops and flips draw from torch's global generator, so that who seeds that fixes them.
A file that is missing or damaged is a `HotswapError` of one line that says which, and where the data comes from.
"""
