"""CNI plugins: the Container Network Interface on top of netlib's core; nothing here changes the kernel by itself."""
