"""Files of weights and images: writing, reading, names, shards and the hub."""
