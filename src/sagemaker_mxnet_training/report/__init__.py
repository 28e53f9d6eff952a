"""What a job looked like, from the timelines that its hosts have written."""
