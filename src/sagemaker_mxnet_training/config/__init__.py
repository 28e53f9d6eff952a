"""The configuration of a job: read from variables and files, checked, described."""
