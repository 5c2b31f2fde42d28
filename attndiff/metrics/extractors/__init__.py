"""Networks whose features measure images."""
