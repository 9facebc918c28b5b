"""The version, below everybody who prints it."""

__version__ = '0.1.0'
