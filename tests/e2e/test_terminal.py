"""What an operator sees on a terminal: a live run, its end, a question and an error; 80 and 200 columns."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from typing import TYPE_CHECKING

import pyte
import pytest

from dispatcher.emulator.faults import Fault, FaultPlan

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.e2e.conftest import Emulators, Site

ROWS = 30
LIVE = re.compile(r" \d+ % ")


class Terminal:
    """A command on a pseudo-terminal of a given width, and every distinct screen it drew."""

    def __init__(self, site: Site, columns: int, *arguments: object, **env: str) -> None:
        self.screen = pyte.Screen(columns, ROWS)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self.screens: list[list[str]] = []
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dispatcher", *map(str, arguments)],
            stdin=slave, stdout=slave, stderr=slave, cwd=site.folder, start_new_session=True,
            env=site.env | {"TERM": "xterm-256color"} | env,
        )  # fmt: skip
        site.live.append(self.process)
        os.close(slave)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def until(self, is_it: Callable[[list[str]], bool], *, timeout: float = 60.0) -> list[str]:
        """Read until a screen is the one; return it."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            lines = self._read()
            if is_it(lines):
                return lines
        raise AssertionError("\n".join(self.lines()))

    def end(self) -> int:
        """Read to the end; return the exit code."""
        while self.process.poll() is None:
            self._read()
        self._read()
        os.close(self._master)
        return self.process.returncode

    def _read(self) -> list[str]:
        if select.select([self._master], [], [], 0.05)[0]:
            try:
                data = os.read(self._master, 65_536)
            except OSError:  # the other end was closed
                return self.lines()
            self.raw += data
            self._stream.feed(data)
            lines = self.lines()
            if not self.screens or self.screens[-1] != lines:
                self.screens.append(lines)
        return self.lines()

    def lines(self) -> list[str]:
        """What is on the screen, without the empty rest."""
        lines = [line.rstrip() for line in self.screen.display]
        while lines and not lines[-1]:
            lines.pop()
        return lines


def live_lines(terminal: Terminal) -> list[str]:
    """Every progress line that was drawn."""
    return [line for screen in terminal.screens for line in screen if LIVE.search(line)]


@pytest.mark.parametrize("columns", [80, 200])
def test_a_run_is_one_tidy_line_and_then_a_summary(site: Site, emulate: Emulators, columns: int) -> None:
    """The bar never wraps, tells rate and time left, and leaves nothing behind it."""
    shares = {Fault.LOST_REPLY: 0.05}
    service = emulate(600, latency_s=0.05, rate_per_s=40, burst=5, faults=FaultPlan(shares=shares))
    manifest = site.manifest([*site.ids(600), "smd-nobody"], name="nightly-reboot-of-all-the-sites")
    terminal = Terminal(site, columns, "run", manifest, "--endpoint-url", service.url, "--rate", 100)
    assert terminal.end() == 1
    drawn = live_lines(terminal)
    assert drawn
    assert all(screen and sum(bool(LIVE.search(line)) for line in screen) <= 1 for screen in terminal.screens)
    assert any("calls/s" in line and "left" in line for line in drawn)
    assert any("throttled" in line for line in drawn) or columns == 80
    final = terminal.lines()
    assert not any(LIVE.search(line) for line in final)
    words = [line[:11].strip() for line in final]
    assert [word for word in words if word in ("run", "devices", "calls", "forecast")] == [
        "run", "devices", "calls", "forecast",
    ]  # fmt: skip


def test_colours_only_where_they_are_wanted(site: Site, emulate: Emulators) -> None:
    """With NO_COLOR there is a bar and no colour; on a dumb terminal neither."""
    service = emulate(100, latency_s=0.05)
    manifest = site.manifest(site.ids(100))
    colour = re.compile(rb"\x1b\[[0-9;]*3[0-9;]*m")
    for key, env in (("plain", {"NO_COLOR": "1"}), ("dumb", {"TERM": "dumb"}), ("colour", {})):
        arguments = ("run", manifest, "--endpoint-url", service.url, "--rate", 20, "--run-key", key)
        terminal = Terminal(site, 80, *arguments, **env)
        assert terminal.end() == 0
        assert bool(colour.search(terminal.raw)) == (key == "colour")
        assert bool(live_lines(terminal)) == (key != "dumb")
        assert (b"\x1b" in terminal.raw) == (key != "dumb")


def test_an_error_is_one_sentence_in_red(site: Site) -> None:
    """Whole, also where it wraps; what the terminal would act on is made visible instead."""
    (site.folder / "bad.yaml").write_text('name: "x\\e[31m"\ncommand: reboot\ninventory: {targets: [a]}\n')
    terminal = Terminal(site, 80, "plan", "bad.yaml")
    assert terminal.end() == 2
    text = "".join(line.ljust(80) for line in terminal.lines())  # the terminal's own wrapping
    assert text.startswith("error: bad.yaml:")
    assert "the first a letter or digit, not 'x\\x1b[31m'" in text
    assert terminal.raw.startswith(b"\x1b[31merror:\x1b[0m ")
    assert terminal.raw.count(b"\x1b") == 2


def test_several_problems_are_listed_under_their_count(site: Site) -> None:
    """Each wraps at words, indented, so that the eye finds where the next begins."""
    (site.folder / "bad.yaml").write_text('name: "x\\e[31m"\ncomand: reboot\ninventory: {targets: [a b]}\n')
    terminal = Terminal(site, 80, "plan", "bad.yaml")
    assert terminal.end() == 2
    head, *lines = [line.rstrip() for line in terminal.lines() if line.strip()]
    assert head == "error: 3 problems, nothing was sent:"
    assert all(line.startswith("  ") for line in lines)
    assert [line.split()[0] for line in lines if ": " in line] == [
        "bad.yaml:1:",
        "bad.yaml:2:",
        "inventory.targets:",
    ]


def test_a_large_fleet_is_typed(site: Site) -> None:
    """Against AWS the count is asked for; the wrong one sends nothing."""
    manifest = site.manifest(site.ids(150))
    for answer, code in (("15", 2), ("y", 2), ("", 2)):
        terminal = Terminal(site, 80, "run", manifest)
        terminal.until(lambda lines: any("Type the number of devices" in line for line in lines))
        terminal.type(answer + "\n")
        assert terminal.end() == code
        assert "declined; nothing was sent" in "\n".join(terminal.lines())


def test_results_wrap_at_words_and_commands_stay_whole(site: Site, emulate: Emulators) -> None:
    """What is longer than the terminal goes on under its own text; a command can be copied as it is."""
    service = emulate(20)
    manifest = site.manifest([*site.ids(20), "smd-nobody"], name="all-the-sites-of-the-north-west-region")
    refused = Terminal(site, 60, "run", manifest, "--endpoint-url", service.url, "--run-key", "tonight")
    assert refused.end() == 1
    (start, *_) = refused.screens[-1]
    assert start.startswith("starting all-the-sites")
    assert all(len(line) <= 60 for line in refused.lines())
    status = Terminal(site, 60, "status", "all-the-sites-of-the-north-west-region@tonight")
    assert status.end() == 0
    lines = status.lines()
    service_at = next(number for number, line in enumerate(lines) if line.startswith("service "))
    assert lines[service_at + 1].startswith(" " * 11)
    assert lines[service_at + 1][11] != " "
