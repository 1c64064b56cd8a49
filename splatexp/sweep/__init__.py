"""Sweeps: jobs, the cache of jobs, launchers, the search by Optuna, Pareto fronts."""
