"""What others may run on their own strategies: the conformance check."""
