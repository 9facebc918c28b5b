"""Data: the synthetic Shapes data, and faults of any data set."""
