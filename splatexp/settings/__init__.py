"""Checks of settings, their messages, their plain values, and the names that have changed."""
