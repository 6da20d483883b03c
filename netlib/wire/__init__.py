"""How netlibd and its clients speak."""
