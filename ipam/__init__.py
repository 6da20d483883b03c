"""IPAM drivers, which choose subnets and addresses, and the address assignment of the CNI plugins."""
