"""Kinds of self-attention, one a file; `attndiff.nn.level` names them."""
