"""What a job is: read from the environment and SageMaker's files, checked, described."""
