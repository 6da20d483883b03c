"""The bundled runtime: namespaces, mounts, cgroups, a minder per container, logs."""
