"""netlibd: the library kept warm, for what must outlive a call."""
