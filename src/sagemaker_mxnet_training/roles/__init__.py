"""Programs that run in processes of their own: the user's script, the kvstore, the watchdog."""
