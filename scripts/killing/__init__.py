"""Runs that are killed at any moment: what `kill_campaign` is made of."""
