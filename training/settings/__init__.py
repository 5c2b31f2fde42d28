"""Reading what a config says, and checking it against what it is about."""
