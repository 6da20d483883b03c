"""The bundled container runtime: namespaces, mounts, control groups, a minder process per container, logs."""
