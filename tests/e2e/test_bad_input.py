"""Whatever is wrong with what was asked for, the real command says so in words, and nothing happens.

The tables beside this file hold bad manifests, inventories, flags and environments. Each case is one process
in a folder of its own, all of them beside one emulator, whose ledger must stay empty. The processes run four
at a time, before the first case is judged.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.e2e.bad_manifests import MANIFESTS, Case
from tests.e2e.bad_requests import ENVIRONMENTS, FLAGS, INVENTORIES
from tests.e2e.conftest import SUMMARY_KEYS, Done, Emulators

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.conftest import Site

AT_ONCE = 4
LOCKS = {"state", "state/locks", "state/locks/n.lock", "state/n.db.lock"}
"""What a refusal may leave once the run's name is known: a lock file that somebody removes locks nothing."""
PLANNED = {"state/n.db", "state/registry", "state/registry/n.json"}
CASES = {**MANIFESTS, **INVENTORIES, **FLAGS, **ENVIRONMENTS}


# ------------------------------------------------------------------------------- doing it


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one case ended, and what it left behind."""

    done: Done
    left: set[str]
    is_json: bool
    is_plan: bool


def prepare(folder: Path, case: Case) -> None:
    """Make the case's files."""
    folder.mkdir()
    for name, data in case.files.items():
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    match case.setup.split():
        case ["mkdir", name]:
            (folder / name).mkdir()
        case ["link", name, to]:
            (folder / name).symlink_to(to)
        case ["socket", name]:
            os.mknod(folder / name, stat.S_IFSOCK | 0o600)
        case ["chmod", name]:
            (folder / name).chmod(0)


def inhabitants(folder: Path) -> set[str]:
    """Every path below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def carry_out(folder: Path, name: str, case: Case, url: str) -> Outcome:
    """Run one case: by its name with `--json` or without, and by `plan` or `run` where both must refuse."""
    prepare(folder, case)
    (folder / "tmp").mkdir()
    before = inhabitants(folder)
    variables = {
        key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "DISPATCHER_"))
    }
    given = variables | {
        "TMPDIR": str(folder / "tmp"),
        "DISPATCHER_STATE_DIR": str(folder / "state"),
        "DISPATCHER_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "example",
        "AWS_CONFIG_FILE": "none",
        "AWS_SHARED_CREDENTIALS_FILE": "none",
        "AWS_EC2_METADATA_DISABLED": "true",
        **case.env,
    }
    draw = zlib.crc32(name.encode())
    is_json = draw % 2 == 1
    words = [*case.words]
    if name in (*MANIFESTS, *INVENTORIES) and draw % 4 > 1:
        words[0] = "plan"
    words[1:1] = ["--json"] if is_json and words[0] != "config" else []
    words += ["--json"] if is_json and words[0] == "config" else []
    ended = subprocess.run(
        [sys.executable, "-m", "dispatcher", *words],
        input=case.stdin,
        capture_output=True,
        cwd=folder,
        env={key: value for key, value in given.items() if value is not None},
        timeout=60,
        check=False,
    )
    left = inhabitants(folder) - before
    done = Done(ended.returncode, ended.stdout.decode(), ended.stderr.decode())
    return Outcome(done, left, is_json, is_plan=words[0] == "plan")


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Outcome]]:
    """Carry out every case that was selected, beside one emulator that nobody may call."""
    selected = {
        item.callspec.params.get("name") for item in request.session.items if hasattr(item, "callspec")
    }
    emulators = Emulators()
    service = emulators()
    root = tmp_path_factory.mktemp("bad")
    try:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            jobs = {
                name: pool.submit(carry_out, root / str(number), name, case, service.url)
                for number, (name, case) in enumerate(CASES.items())
                if name in selected and (case.stops_root or os.geteuid() != 0)
            }
            found = {name: job.result() for name, job in jobs.items()}
        assert service.running.ledger.calls == []
        yield found
    finally:
        emulators.stop()


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_in_words(name: str, outcomes: dict[str, Outcome]) -> None:
    """The contract's code, one error that names its place, no result, nothing sent, nothing left."""
    if name not in outcomes:
        pytest.skip("root reads everything")
    case, outcome = CASES[name], outcomes[name]
    done = outcome.done
    assert done.code == case.code, done.err
    assert "Traceback" not in done.err + done.out
    assert "hunter2" not in done.err + done.out
    assert len(done.errors) == 1, done.err
    for words in case.says:
        assert words in done.err, done.err
    assert all(line.isprintable() for line in done.err.splitlines())
    if outcome.is_json:
        assert list(done.summary) == [*SUMMARY_KEYS, "error"]
        assert done.errors == [f"error: {done.summary['error']}"]
        assert done.summary["exit"] == case.code
    else:
        assert done.out == ""
    beside = {f"{checkpoint}.lock" for checkpoint in case.files}
    assert outcome.left <= LOCKS | beside | (PLANNED if case.plans else set())
    assert not (outcome.is_plan and outcome.left)


def test_several_problems_are_a_line_each(site: Site) -> None:
    """People get a count and a line for each; programs one line, in `error` and on stderr."""
    (site.folder / "m.yaml").write_text("name: a/b\ncommand: rebot\ninventory: {path: f.csv}\n")
    (site.folder / "f.csv").write_text("id\nsmd-a\nb c\nd e\n")
    site.env["DISPATCHER_YES"] = "1"
    done = site.do("run", "m.yaml", "--rate", "fast")
    head, *lines = done.err.splitlines()
    assert (done.code, done.out, head) == (2, "", "error: 6 problems, nothing was sent:")
    assert [re.split(r": (?=[a-z0-9])", line)[0] for line in lines] == [
        "  DISPATCHER_YES",
        "  --rate",
        "  m.yaml:1",
        "  m.yaml:2",
        "  f.csv:3",
        "  f.csv:4",
        "  f.csv",
    ]
    done = site.do("run", "m.yaml", "--rate", "fast", "--json")
    assert done.errors == [f"error: {done.summary['error']}"]
    assert done.err.count("\n") == 1
    assert done.summary["error"] == f"6 problems: {'; '.join(line.strip() for line in lines)}"
