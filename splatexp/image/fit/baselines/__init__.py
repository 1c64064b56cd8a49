"""Coding methods that the codec is compared with."""
