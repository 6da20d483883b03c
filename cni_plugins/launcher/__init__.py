"""What a runtime executes: a launcher per plugin type, in C or in Python, which has the call done by netlibd or in-process."""
