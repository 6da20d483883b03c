"""CNI: the container network interface as one more face of netlib; thin, and without kernel work of its own."""
