"""netlibd: one process per run folder. It answers names, holds published ports, and performs verbs for commands and plugins."""
