"""The only door to the kernel: netlink, namespaces, sysctls, our files. Every library's exception is translated here."""
