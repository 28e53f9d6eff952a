"""The process that owns connections, the queue and all other processes; it never imports MXNet."""
