"""Programs that run in the job's own processes: the user's script, scheduler and servers."""
