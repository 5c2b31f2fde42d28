"""What is measured and drawn while training."""
