"""Networks by name, and the images that they were trained on."""
