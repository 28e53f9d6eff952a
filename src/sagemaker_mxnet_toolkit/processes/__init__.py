"""Child processes: start, monitor, signal and reap them, and read their reports."""
