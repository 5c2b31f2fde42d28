"""What the calls of all pipelines do alike."""
