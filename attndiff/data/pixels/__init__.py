"""From files to arrays and back."""
