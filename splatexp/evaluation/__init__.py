"""Evaluation: metrics of held-out views, their renders, the result file and the summary."""
