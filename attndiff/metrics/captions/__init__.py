"""How well captions say what the real ones do."""
