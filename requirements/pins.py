"""Prints the requirements of some files; a distribution that several files name is taken from the last one.

python requirements/pins.py requirements/runtime.txt requirements/compiled/runtime.txt
"""

import re
import sys
from pathlib import Path

pins: dict[str, list[str]] = {}
for file in map(Path, sys.argv[1:]):
    lines = file.read_text().splitlines() if file.is_file() else []
    named = [(match.group().lower(), line) for line in lines if (match := re.match(r'[\w.-]+', line))]
    pins.update({name: [] for name, _ in named})
    for name, line in named:
        pins[name].append(line)
print(*(line for lines in pins.values() for line in lines), sep='\n')
