"""netlibd: the library kept warm in one process per host, for what must outlive a call, and as everybody's fast path."""
