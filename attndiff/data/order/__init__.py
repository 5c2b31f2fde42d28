"""The order of training: which samples a step visits, and what a visit draws."""
