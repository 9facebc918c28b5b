"""What a built backbone looks like, read from a forward: as data (`tracing`), picture (`drawing`) and tables (`pages`).

`python -m dev.architecture` draws any backbone, and renews the pages under docs/backbones.
"""
