"""The command line: one module per noun; Docker's words where a user expects them."""
