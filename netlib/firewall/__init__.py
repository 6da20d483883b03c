"""The firewall: objects that say what containers may reach and what may reach them, and backends that make rules of them."""
