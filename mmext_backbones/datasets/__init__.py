"""The synthetic Shapes data."""
