"""Pure functions on state dicts, one file a family."""
