"""What a test measures: per class, from saved predictions, over several views of a picture."""
