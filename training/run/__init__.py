"""From the first step of a run to the last."""
