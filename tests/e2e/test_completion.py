"""The completion scripts: bash's asked for candidates as bash asks, the others read by their shells."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dispatcher.cli import _COMMANDS, main
from dispatcher.cli.completion import SHELLS, known_runs, script, serve

if TYPE_CHECKING:
    from tests.e2e.conftest import Site

ASK = """
set -u
source <(dispatcher completion bash)
COMP_LINE=$1 COMP_POINT=${#1} COMP_WORDBREAKS=$' \\t\\n"\\'@><=;|&(:'
read -ra COMP_WORDS <<< "$1"
COMP_CWORD=${#COMP_WORDS[@]}
compopt() { echo "compopt $*"; }
_dispatcher_completion dispatcher "" ""
printf '%s\\n' "${COMPREPLY[@]}"
"""
"""Sets what bash sets before it calls a completion function."""


@pytest.fixture
def shell(site: Site) -> Site:
    """A machine with the command in its path and two runs in its state folder."""
    site.env["PATH"] = f"{Path(sys.executable).parent}:{site.env['PATH']}"
    registry = site.state / "registry"
    registry.mkdir(parents=True, mode=0o700)
    for name in ("night.json", "night@to.json", "other.json", ".night.json.12.tmp", "$(id).json"):
        (registry / name).write_text("{}")
    return site


def candidates(shell: Site, line: str) -> list[str]:
    """Return what bash would offer behind `line`."""
    done = subprocess.run(
        ["bash", "-c", ASK, "bash", line],
        env=shell.env, cwd=shell.folder, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("dispatcher ", [*_COMMANDS]),
        ("dispatcher re", ["resume", "reconcile", "report"]),
        ("dispatcher status ", ["night", "night@to", "other"]),
        ("sudo /opt/x/dispatcher resume ni", ["night", "night@to"]),
        ("dispatcher report night@", ["to"]),
        ("dispatcher report night --format js", ["json", "jsonl"]),
        ("dispatcher report night --format=js", ["json", "jsonl"]),
        ("dispatcher report night --state accepted,re", ["accepted,rejected"]),
        ("dispatcher run f.yaml --rate-c", ["--rate-control"]),
        ("dispatcher run f.yaml --rate-control ", ["learn", "aimd", "fixed"]),
        ("dispatcher config ", ["show"]),
        ("dispatcher completion ", [*SHELLS]),
        ("dispatcher run fl", ["compopt", "-o", "default"]),
        ("dispatcher run f.yaml --config ", ["compopt", "-o", "default"]),
        ("dispatcher report ./x", ["compopt", "-o", "default"]),
        ("dispatcher nonsense ", []),
        ("dispatcher status 'unclosed ", ["compopt", "-o", "default"]),
    ],
)
def test_bash_offers_what_fits(shell: Site, line: str, offered: list[str]) -> None:
    """Verbs, options, choices, run ids, files; nothing and no complaint where there is nothing."""
    assert candidates(shell, line) == offered


def test_runs_come_from_the_folder_that_is_meant(
    shell: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """That of --config, where it is on the line; a folder that is not there has none."""
    (tmp_path / "there.toml").write_text(f"state_dir = {json.dumps(str(shell.state))}")
    monkeypatch.delenv("DISPATCHER_STATE_DIR", raising=False)
    monkeypatch.setenv("COMP_LINE", f"dispatcher status --config {tmp_path / 'there.toml'} o")
    assert serve("bash_complete") == 0
    assert capsys.readouterr().out == "plain,other\n"
    assert known_runs(tmp_path / "none") == []


def test_a_verb_or_a_choice_needs_neither_network_nor_checkpoint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `main` does when a shell asks, and that it imports nothing slow for the list of verbs."""
    script_of_a_shell = {**os.environ, "_DISPATCHER_COMPLETE": "bash_complete", "COMP_LINE": "dispatcher "}
    slow = ("botocore", "aiohttp", "apsw", "rich", "asyncio", "dispatcher.settings")
    code = (
        "import sys, dispatcher.cli as c\n"
        "try: c.main([])\n"
        f"except SystemExit: print([name for name in {slow} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=script_of_a_shell, capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:2] == ["plain,plan", "plain,run"]
    assert done.stdout.endswith("[]\n")
    monkeypatch.setenv("_DISPATCHER_COMPLETE", "nonsense")
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 1
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", SHELLS)
def test_the_script_is_printed(site: Site, name: str) -> None:
    """As it is, or in an object."""
    done = site.do("completion", name)
    assert (done.code, done.out) == (0, script(name) + "\n")
    found = site.do("completion", name, "--json").summary
    assert found == {"shell": name, "script": script(name)}
    assert "_DISPATCHER_COMPLETE" in done.out


@pytest.mark.parametrize("name", SHELLS)
def test_the_script_is_one_that_its_shell_can_read(name: str) -> None:
    """Where the shell is installed."""
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    subprocess.run([name, "-n"], input=script(name), text=True, check=True, timeout=60)
