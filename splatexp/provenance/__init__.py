"""Where a number comes from: code, environment, and the identity of an experiment."""
