"""Where settings come from, and how they are checked."""
