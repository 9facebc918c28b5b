"""What a built backbone looks like, read from a forward: as data (`tracing`), picture (`drawing`) and tables (`pages`).

`tools/draw_backbones.py` draws any backbone, and renews the pages under docs/backbones.
"""
