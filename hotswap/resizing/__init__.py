"""Enlargements as targets: `nn.Upsample`, `F.interpolate` and fixed bilinear `nn.ConvTranspose2d`, made guided.

They are carried out before the swaps of convolutions, on a graph of their own.
"""
