"""The configuration of a job, from environment variables and files."""
