"""Reports on a job, from the timelines of its hosts."""
