"""The user's code: fetch it, unpack it, and find its entry point."""
