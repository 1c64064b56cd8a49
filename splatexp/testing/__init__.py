"""Checks that users can run on their own strategies: the conformance check."""
