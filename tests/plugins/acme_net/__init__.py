"""Somebody else's drivers, by netlib's contracts alone."""
