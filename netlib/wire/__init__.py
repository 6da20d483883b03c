"""The protocol between netlibd and its clients, and the clients' side of it."""
