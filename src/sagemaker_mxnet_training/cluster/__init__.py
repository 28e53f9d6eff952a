"""How hosts find each other, talk, and decide together when to start and how it ended."""
