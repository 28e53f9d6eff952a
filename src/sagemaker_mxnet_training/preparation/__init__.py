"""What happens before training: the user's code is fetched, its requirements are installed."""
