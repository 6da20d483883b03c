"""Where records are kept: SQLite for this host (``sqlite.py``), its tables (``schema.py``), typed rows (``records.py``)."""
