"""IPAM drivers: where addresses come from, found by name."""
