"""Settings: how they are declared, where they come from, and how they are checked."""
