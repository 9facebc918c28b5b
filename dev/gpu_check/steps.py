"""The steps of a run, in a budget of seconds."""

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

SLOWER = 1.5  # a step may take as many times what the one before it of its kind has taken


class Steps:
    """Runs steps while there is time for them, and keeps what they find.

    Args:
        seconds: the budget, from now on.
        path: where the results are written after each step; None: nowhere.
        about: what the results begin with.
    """

    def __init__(self, seconds: float, path: Path | None, about: dict[str, Any]) -> None:
        self.began = time.monotonic()
        self.seconds, self.path = seconds, path
        self.results: dict[str, Any] = {**about, 'left_out': [], 'errors': []}
        self.taken: dict[str, float] = {}  # by kind, of the longest step
        self.now: str | None = None
        self.lock = threading.RLock()

    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.began)

    def run(self, kind: str, name: str, function: Callable[[], dict | list[dict]], needs: float) -> None:
        """Runs a step and appends its rows to results[kind].

        Args:
            kind: of steps that take about the same time.
            name: what is told of it.
            function: returns a row or rows; what it raises becomes an entry of results['errors'].
            needs: seconds that there must be left for the first of its kind.
        """
        if self.left() < max(needs, SLOWER * self.taken.get(kind, 0)):
            self.results['left_out'].append(f'{kind}: {name}')
            return
        began, self.now = time.monotonic(), f'{kind}: {name}'
        try:
            rows = function()
        except Exception as error:
            told = {'step': self.now, 'error': f'{type(error).__name__}: {error}'[:500]}
            self.results['errors'].append({**told, 'traceback': traceback.format_exc()[-3000:]})
        else:
            with self.lock:
                self.results.setdefault(kind, []).extend(rows if isinstance(rows, list) else [rows])
        took = time.monotonic() - began
        self.taken[kind] = max(took, self.taken.get(kind, 0))
        print(f'{self.left():4.0f} s left  {self.now} ({took:.1f} s)', file=sys.stderr, flush=True)
        self.now = None
        self.write()

    def write(self) -> None:
        with self.lock:
            self.results['seconds'] = round(time.monotonic() - self.began, 1)
            if self.path is not None:
                made = self.path.with_name(f'{self.path.name}.new')
                made.write_text(json.dumps(self.results, indent=1) + '\n')
                os.replace(made, self.path)

    def end_in_time(self, spare: float) -> None:
        """Ends the process `spare` seconds after the budget, whatever a step waits for."""

        def end() -> None:
            self.results['left_out'].append(f'{self.now}, and what follows: the time was up in the midst of it')
            self.write()
            os._exit(3)

        timer = threading.Timer(self.seconds + spare, end)
        timer.daemon = True
        timer.start()
