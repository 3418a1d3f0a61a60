"""Conditional random fields whose messages are pixel-adaptive convolutions."""
