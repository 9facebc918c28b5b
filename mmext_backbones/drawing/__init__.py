"""Pictures: objects, labels and panels on images, charts, and how they are written to files."""
