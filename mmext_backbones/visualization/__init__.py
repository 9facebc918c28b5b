"""Pictures of data, networks and trainings: one module for each subcommand of tools/visualize.py.

A subcommand is a module with ``add_arguments(parser)`` and ``run(args)``; its docstring is the text of its ``--help``.
"""
