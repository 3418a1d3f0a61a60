"""Files of weights and images: how they are written, read, named, split and fetched."""
