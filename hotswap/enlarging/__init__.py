"""Maps that are enlarged outside a network, guided by the image."""
