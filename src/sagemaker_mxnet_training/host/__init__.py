"""One host of a job: its supervisor, its processes, and what it leaves behind."""
