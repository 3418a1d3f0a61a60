"""Files that run without hotswap."""
