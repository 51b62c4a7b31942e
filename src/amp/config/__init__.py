"""What a client is configured with: names that stand for something."""
