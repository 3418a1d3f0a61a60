"""The operators as layers."""
