"""Progress of long work: a bar with ETA on a terminal, plain lines elsewhere; on stderr, stdout is for results."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm


class Progress:
    """Counts to `total`.

    Args:
        total: Steps of the work.
        description: What is being done.
        done: Steps already done (a continued run).
        every: Seconds between plain lines.
        enabled: False in all processes but one.
    """

    def __init__(
        self, total: int, description: str, *, done: int = 0, every: float = 10.0, enabled: bool = True
    ) -> None:
        self.total, self.description, self.every, self.enabled = total, description, every, enabled
        self.count = self._first = done
        self._start = self._last = time.monotonic()
        self._note = ""
        self._bar: Any = None
        if enabled and sys.stderr.isatty():
            self._bar = tqdm(total=total or None, initial=done, desc=description, file=sys.stderr, dynamic_ncols=True)

    def __call__(self, steps: int = 1) -> None:
        self.count += steps
        if self._bar is not None:
            self._bar.update(steps)
        elif self.enabled and time.monotonic() - self._last >= self.every:
            self._last = time.monotonic()
            self._line()

    def reached(self, done: int, total: int | None) -> None:
        """For work that says how far it is rather than how far it went."""
        self.total = total or 0
        if self._bar is not None:
            self._bar.total = total
        self(done - self.count)

    def note(self, text: str) -> None:
        """A short text behind the count (the loss, say)."""
        self._note = text
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)

    def say(self, text: str) -> None:
        """A line of its own, without breaking the bar."""
        if not self.enabled:
            return
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def _line(self) -> None:
        elapsed = self._last - self._start
        text = f"{self.description}: {self.count}"
        if self.total:
            left = (self.total - self.count) * elapsed / max(1, self.count - self._first)
            text += f"/{self.total}, {_clock(elapsed)} passed, {_clock(left)} left"
        print(text + (f", {self._note}" if self._note else ""), file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
