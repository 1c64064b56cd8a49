"""The provenance of a number: code, environment, and the identity of an experiment."""
