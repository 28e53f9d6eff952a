"""The control channel between the hosts of a job: addresses, connections and messages."""
