"""Studies: many runs that are compared, with statistics and a report."""
