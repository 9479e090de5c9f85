"""What writing to streams and to the log file does where it fails."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import click
import pytest

from dispatcher.cli import EXIT_BUG, cli, main
from dispatcher.cli.event_log import EventLog

if TYPE_CHECKING:
    from pathlib import Path


def test_a_torn_line_does_not_spoil_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that takes half a line and then fails costs that line alone, and is told of once."""
    real, room, said = os.write, [4, 0, 0], []

    def scarce(fd: int, data: bytes) -> int:
        if not room:
            return real(fd, data)
        if (some := room.pop(0)) == 0:
            raise OSError(28, "No space left on device")
        return real(fd, data[:some])

    monkeypatch.setattr("dispatcher.cli.event_log.note", said.append)
    with EventLog(str(tmp_path / "log")) as log:
        monkeypatch.setattr(os, "write", scarce)
        for line in ("first", "second", "third"):
            log.append(line)
        monkeypatch.undo()
    assert (tmp_path / "log").read_text().splitlines() == ["firs", "third"]
    assert len(said) == 1


def test_a_log_that_is_closed_writes_no_other_file(tmp_path: Path) -> None:
    """A thread may be at an event still: what came before the close is whole, what comes after is dropped."""
    log = EventLog(str(tmp_path / "log"))
    writing, go_on = threading.Event(), threading.Event()

    def write(count: int) -> None:
        for number in range(count):
            log.append(f"line {number}")
            if number == 100:
                writing.set()
        go_on.wait(10)
        log.append("late")

    with log:
        thread = threading.Thread(target=write, args=(20_000,))
        thread.start()
        writing.wait(10)
    other = os.open(tmp_path / "other", os.O_CREAT | os.O_WRONLY)  # takes the number that the log had
    go_on.set()
    thread.join(20)
    os.close(other)
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) > 100
    assert lines == [f"line {number}" for number in range(len(lines))]
    assert (tmp_path / "other").read_bytes() == b""


def test_a_broken_pipe_inside_is_a_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """EPIPE from anything but a standard stream is not taken for a reader that has gone."""

    @click.command()
    def broken() -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(type(cli), "get_command", lambda *_: broken)
    with pytest.raises(SystemExit) as end:
        main(["runs"])
    assert end.value.code == EXIT_BUG
    assert "a bug in the dispatcher" in capsys.readouterr().err


def test_it_is_a_bug_though_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stdout without a reader excuses what prints help, and nothing that was to do something."""

    @click.command()
    def broken() -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(type(cli), "get_command", lambda *_: broken)
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        with pytest.raises(SystemExit) as end:
            main(["runs"])
    assert end.value.code == EXIT_BUG
