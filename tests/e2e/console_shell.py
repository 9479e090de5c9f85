"""The shell of a played document: a home of its own, free ports, and what it prints."""

from __future__ import annotations

import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

HOME = "/home/ops"
"""What the documents call the home folder that a session really has."""
DEADLINE_S = 60.0
_MARK = "\x1e"
_KILLED = re.compile(r"^bash: line \d+: +\d+ (Killed).*$", re.MULTILINE)
"""What a script's shell says where a person's says `Killed`."""
_PORT = re.compile(r"\b90\d\d\b")


class Session:
    """One shell in a fresh home, with free ports where the document says 90xx."""

    def __init__(self, home: Path) -> None:
        self._home = home.resolve()
        self._ports: dict[str, str] = {}
        kept = {key: os.environ[key] for key in ("LANG", "LC_ALL", "TMPDIR") if key in os.environ}
        self._shell = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self._home,
            env=kept
            | {
                "HOME": str(self._home),
                "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
                "AWS_EC2_METADATA_DISABLED": "true",
            },
            start_new_session=True,
        )

    def close(self) -> None:
        """End the shell and what it left in the background."""
        os.killpg(self._shell.pid, signal.SIGKILL)
        self._shell.communicate()

    def write(self, name: str, text: str) -> None:
        """Write a file of the document."""
        path = self._home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self._real(text), encoding="utf-8")

    def run(self, command: str, *, until: int = 0) -> tuple[int, list[str]]:
        """Run a command; return its exit code and the lines it printed, once there are `until` of them."""
        assert self._shell.stdin is not None
        # stdin is the script itself, so no command may read it; $? must outlive the mark.
        self._shell.stdin.write(
            f"{{ {self._real(command)}\n}} </dev/null\n"
            f"__code=$?; printf '\\n\\036%d\\036\\n' $__code; (exit $__code)\n".encode()
        )
        self._shell.stdin.flush()
        text = self._read(lambda text: text.endswith(f"{_MARK}\n"))
        text, code = text.split(_MARK)[0].removesuffix("\n"), int(text.split(_MARK)[1])
        if text.count("\n") < until:
            text += self._read(lambda more: (text + more).count("\n") >= until)
        return code, self._shown(text).rstrip("\n").split("\n") if text.strip("\n") else []

    def _read(self, is_whole: Callable[[str], bool]) -> str:
        assert self._shell.stdout is not None
        text, until = "", time.monotonic() + DEADLINE_S
        with selectors.DefaultSelector() as selector:
            selector.register(self._shell.stdout, selectors.EVENT_READ)
            while not is_whole(text):
                if not selector.select(until - time.monotonic()):
                    raise AssertionError(f"no end after {DEADLINE_S:g} s; so far: {text[-2000:]}")
                data = os.read(self._shell.stdout.fileno(), 1 << 16)
                assert data, f"the shell is gone; it said: {text[-2000:]}"
                text += data.decode("utf-8", "replace")
        return text

    def _real(self, text: str) -> str:
        """Put this session's ports and home in place of the document's."""

        def port(found: re.Match[str]) -> str:
            return self._ports.setdefault(found[0], str(_free_port()))

        return _PORT.sub(port, text).replace(HOME, str(self._home))

    def _shown(self, text: str) -> str:
        """Put the document's ports and home in place of this session's."""
        for shown, real in self._ports.items():
            text = re.sub(rf"\b{real}\b", shown, text)
        return _KILLED.sub(r"\1", text.replace(str(self._home), HOME))


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
