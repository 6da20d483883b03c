"""Network drivers: pure functions from records to plans, found by name."""
