"""Programs of child processes: the user's script, the kvstore, the watchdog."""
