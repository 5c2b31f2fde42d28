"""Measurements beside other diffusion networks; `attndiff bench` runs them."""
