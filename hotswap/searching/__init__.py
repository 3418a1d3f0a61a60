"""Whether a swap helps on labelled images, before any training."""
