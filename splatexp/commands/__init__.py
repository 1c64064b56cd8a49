"""Commands on a run that exists already: evaluate, render, resume, view."""
