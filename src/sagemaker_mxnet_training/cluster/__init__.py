"""Coordination of the hosts of a job: when it starts, whether it restarts, and how it ends."""
