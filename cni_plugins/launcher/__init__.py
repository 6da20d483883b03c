"""The launchers that a runtime executes as plugins, in C and in Python: netlibd does the call, or the launcher's process."""
