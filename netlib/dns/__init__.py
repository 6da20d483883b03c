"""The embedded resolver: zone (records to names, pure), resolver (question to answer, pure), upstream, server (bytes)."""
