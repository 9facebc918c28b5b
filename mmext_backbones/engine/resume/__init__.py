"""How a training is stopped, and goes on where it stopped."""
