"""What is installed, what fits together, what runs: `python -m mmext_backbones.doctor`.

Libraries are imported in a process of their own (`probe`), which may crash; `utils.remedies` says what fits and helps;
`findings` turns the facts into findings. Nothing here needs more than Python itself.
"""
