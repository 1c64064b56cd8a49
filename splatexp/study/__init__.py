"""Studies: many runs that are compared, and the verdict on them. Nothing of the training imports this."""
