"""Model surgery."""
