"""The progress bar and the deferred interrupt."""

from __future__ import annotations

import io
import os
import re
import signal
import threading

import pytest

from l2path.progress import Interrupt, Progress, deferred_interrupt


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(total: int, done: float, note: str = "") -> str:
    """The bar at a point, from which the time left is cut."""
    stream = io.StringIO()
    Progress(total, "training", True, stream).show(done, note)
    return re.sub(r"\d+ s left|starting", "ETA", stream.getvalue())


def test_the_bar() -> None:
    assert shown(4, 1.0) == "\rtraining |" + "█" * 5 + "░" * 15 + "| epoch 1/4, ETA"
    assert shown(4, 2.5) == "\rtraining |" + "█" * 12 + "░" * 8 + "| epoch 2.5/4, ETA"
    assert shown(4, 4.0) == "\rtraining |" + "█" * 20 + "| epoch 4/4, ETA"
    assert shown(4, 0.0) == "\rtraining |" + "░" * 20 + "| epoch 0/4, ETA"


def test_a_note_comes_last() -> None:
    assert shown(4, 1.0, "3 stopped").endswith("| epoch 1/4, ETA, 3 stopped")


def test_no_epochs_are_done_at_once() -> None:
    assert shown(0, 0.0) == "\rtraining |" + "█" * 20 + "| epoch 0/0, ETA"


@pytest.mark.parametrize("done", [1000.0, 1234.0, 1234.25, 99999.0])
def test_many_epochs_are_written_out(done: float) -> None:
    text = shown(100_000, done)
    assert f"epoch {int(done)}" in text
    assert "e+" not in text


def test_the_time_left_is_unknown_at_the_start() -> None:
    stream = io.StringIO()
    Progress(4, "training", True, stream).show(0.0)
    assert stream.getvalue().endswith(", starting")


def test_a_shorter_line_wipes_a_longer_one() -> None:
    stream = io.StringIO()
    bar = Progress(1, "training", True, stream)
    bar.show(1.0, "a long note that goes away")
    long = stream.getvalue().split("\r")[-1]
    bar.show(1.0, "short")
    short = stream.getvalue().split("\r")[-1]
    assert len(short) == len(long)
    assert short.rstrip().endswith("short")
    assert len(short.rstrip()) < len(long)


def test_it_draws_at_most_ten_times_a_second_but_always_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("l2path.progress.time.monotonic", lambda: now[0])
    stream = io.StringIO()
    bar = Progress(10, "training", True, stream)
    for i in range(9):
        now[0] = 100.0 + 0.04 * i  # drawn at 100.0, 100.12 and 100.24
        bar.show(1.0 + i)
    bar.show(10.0)
    assert re.findall(r"epoch (\d+)", stream.getvalue()) == ["1", "4", "7", "10"]


def test_the_time_left_is_in_proportion(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("l2path.progress.time.monotonic", lambda: now[0])
    stream = io.StringIO()
    bar = Progress(10, "training", True, stream)
    now[0] = 130.0
    bar.show(2.5)  # 30 s for a quarter
    assert "90 s left" in stream.getvalue()


def test_closing_ends_the_line_once_something_was_drawn() -> None:
    stream = io.StringIO()
    bar = Progress(1, "training", True, stream)
    bar.close()
    assert stream.getvalue() == ""
    bar.show(1.0)
    bar.close()
    assert stream.getvalue().endswith("\n")


@pytest.mark.parametrize(
    ("enabled", "terminal", "draws"),
    [(None, False, False), (None, True, True), (False, True, False), (True, False, True)],
)
def test_it_is_silent_unless_asked_or_on_a_terminal(enabled: bool | None, terminal: bool, draws: bool) -> None:
    stream = Terminal() if terminal else io.StringIO()
    bar = Progress(1, "training", enabled, stream)
    bar.show(1.0)
    bar.close()
    assert bool(stream.getvalue()) is draws


def test_it_draws_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    Progress(1, "training", True).show(1.0)
    captured = capsys.readouterr()
    assert captured.err.startswith("\rtraining")
    assert captured.out == ""


# Interrupts


def test_the_first_interrupt_asks_and_the_second_raises(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[bool] = []

    def run() -> None:
        with deferred_interrupt() as interrupt:
            seen.append(interrupt.asked)
            os.kill(os.getpid(), signal.SIGINT)
            seen.append(interrupt.asked)
            signal.raise_signal(signal.SIGINT)
            seen.append(True)

    with pytest.raises(KeyboardInterrupt):
        run()
    assert seen == [False, True]
    assert signal.getsignal(signal.SIGINT) is before
    assert "this run stops" in capsys.readouterr().err


def test_without_an_interrupt_nothing_is_asked_and_the_handler_comes_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with deferred_interrupt() as interrupt:
        assert signal.getsignal(signal.SIGINT) is not before
    assert not interrupt.asked
    assert signal.getsignal(signal.SIGINT) is before


def test_the_callers_own_handler_comes_back_after_an_error() -> None:
    def own(number: int, frame: object) -> None:
        raise AssertionError

    def fail() -> None:
        with deferred_interrupt():
            raise KeyError

    before = signal.signal(signal.SIGINT, own)
    try:
        with pytest.raises(KeyError):
            fail()
        assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_the_main_thread_the_handler_stays() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def run() -> None:
        with deferred_interrupt() as interrupt:
            seen.extend([interrupt, signal.getsignal(signal.SIGINT)])

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert isinstance(seen[0], Interrupt)
    assert not seen[0].asked
    assert seen[1] is before
