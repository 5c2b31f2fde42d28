"""What `attndiff bench` measures: how fast a preset is here, in how much memory, and with which attention."""
