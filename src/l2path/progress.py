"""A progress bar on a terminal, and interrupts that lose nothing."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TextIO


class Progress:
    """A one-line bar; silent where ``enabled`` is False.

    Parameters
    ----------
    total : int
        Number of epochs.
    label : str
        What is going on.
    enabled : bool or None
        None shows it where the stream is a terminal.
    stream : text file, optional
        ``sys.stderr`` where it is left out.
    """

    def __init__(self, total: int, label: str, enabled: bool | None, stream: TextIO | None = None) -> None:
        self.total, self.label, self.stream = total, label, stream or sys.stderr
        terminal = self.stream is not None and self.stream.isatty()  # pythonw and some services have no stderr
        self.enabled = terminal if enabled is None else enabled and self.stream is not None
        self.start = time.monotonic()
        self.last = 0.0
        self.width = 0

    def show(self, done: float, note: str = "") -> None:
        """Draw the bar at ``done`` epochs, at most ten times a second (and always at the end)."""
        now = time.monotonic()
        if not self.enabled or (done < self.total and now - self.last < 0.1):
            return
        self.last = now
        share = done / self.total if self.total else 1.0
        left = (now - self.start) * (1 - share) / share if share > 0 else float("inf")
        full = int(20 * share)
        eta = f"{left:.0f} s left" if left < 1e6 else "starting"
        epochs = f"{done:.0f}" if done >= 100 else f"{done:.3g}"
        text = f"{self.label} |{'█' * full}{'░' * (20 - full)}| epoch {epochs}/{self.total}, {eta}"
        text += f", {note}" if note else ""
        # Pad with blanks so that a shorter line leaves nothing of a longer one.
        self.stream.write("\r" + text.ljust(self.width))
        self.stream.flush()
        self.width = len(text)

    def close(self) -> None:
        """End the line."""
        if self.enabled and self.width:
            self.stream.write("\n")
            self.stream.flush()


class Interrupt:
    """Whether the user has asked to stop."""

    def __init__(self) -> None:
        self.asked = False


@contextmanager
def deferred_interrupt() -> Iterator[Interrupt]:
    """Turn the first Ctrl-C into a request that the driver honours; a second one raises.

    Outside the main thread Python delivers no signals, and the handler stays as it is.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return

    def handler(number: int, frame: FrameType | None) -> None:
        if interrupt.asked:
            raise KeyboardInterrupt
        interrupt.asked = True
        sys.stderr.write(
            "\ninterrupt: this run stops after the steps under way and returns what it has; once more to stop at once\n"
        )

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before if before is not None else signal.SIG_DFL)
