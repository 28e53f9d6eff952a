"""The user's code: fetched, unpacked, and what its entry point is."""
