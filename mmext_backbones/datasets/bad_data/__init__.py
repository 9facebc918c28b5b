"""Faults of images, annotations and class lists: found, named, skipped or reported."""
