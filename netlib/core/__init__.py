"""The core of the Container Network Model: records, and what the kernel holds for them."""
