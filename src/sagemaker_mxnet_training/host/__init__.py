"""One host of a job: its supervisor, its processes and its results."""
