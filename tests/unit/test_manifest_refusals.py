"""What a manifest may not say: each refusal names the file, the line and the key."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from dispatcher.errors import ManifestError
from dispatcher.manifest import Manifest
from dispatcher.manifest_text import MAX_BYTES

if TYPE_CHECKING:
    from pathlib import Path

BASE = "name: n\ncommand: reboot\ninventory: {targets: [a]}\n"
"""Three lines: a case's own lines begin at line 4."""


def write(folder: Path, text: str | bytes, name: str = "m.yaml") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refusal(path: Path) -> ManifestError:
    with pytest.raises(ManifestError) as caught:
        Manifest.load(path)
    assert caught.value.exit_code == 2
    assert "\n" not in caught.value.one_line()
    assert str(path) in caught.value.one_line()
    return caught.value


BAD_YAML = {
    # lines after BASE, then what the message must say, then line and key
    "unknown key": ("comand: reboot", "unknown key, did you mean 'command'?", 4, "comand"),
    "unknown nested key": (
        "limits:\n  rate_per_sec: 1",
        "did you mean 'rate_per_s'?",
        5,
        "limits.rate_per_sec",
    ),
    "key of a section": ("burst: 4", "did you mean 'limits.burst'?", 4, "burst"),
    "unlike anything": ("zzzzz: 4", "known are name, run_key", 4, "zzzzz"),
    "given twice": ("region: us-west-2\nregion: us-west-2", "is given twice, first in line 4", 5, "region"),
    "given twice below": ("limits:\n  burst: 1\n  burst: 2", "is given twice", 6, "limits.burst"),
    "empty value": ("account:", "has no value, remove the key or give it one", 4, "account"),
    "empty number": ("limits: {burst: }", "has no value", 4, "limits.burst"),
    "empty flag": ("system_tags:", "has no value", 4, "system_tags"),
    "empty tag": ("tags: {a: }", "has no value", 4, "tags.a"),
    "short account": ("account: 12345", "the 12 digits of an account, not '12345'", 4, "account"),
    "other digits": ("account: ٠١٢٣٤٥٦٧٨٩٠١", "the 12 digits", 4, "account"),
    "region": ("region: us-west", "must be a region like us-west-2", 4, "region"),
    "description": ("description: a-b", "must be 1 to 128 letters", 4, "description"),
    "long description": (f"description: {'x' * 129}", "must be 1 to 128 letters", 4, "description"),
    "run key": ("run_key: a/b", "must be 1 to 64 letters", 4, "run_key"),
    "yes is no flag": ("system_tags: yes", "must be true or false, not 'yes'", 4, "system_tags"),
    "list for text": ("region: [us-west-2]", "must be text, not a list", 4, "region"),
    "text for a section": ("limits: fast", "must be a mapping, not text", 4, "limits"),
    "rate of zero": ("limits: {rate_per_s: 0}", "must be more than 0", 4, "limits.rate_per_s"),
    "rate not a number": (
        "limits: {rate_per_s: .nan}",
        "must be more than 0, not '.nan'",
        4,
        "limits.rate_per_s",
    ),
    "rate without end": ("limits: {rate_per_s: 1e999}", "must be more than 0", 4, "limits.rate_per_s"),
    "python number": ("limits: {rate_per_s: 1_000}", "must be more than 0", 4, "limits.rate_per_s"),
    "half a burst": ("limits: {burst: 1.5}", "a whole number of at least 1", 4, "limits.burst"),
    "no burst": ("limits: {burst: 0}", "a whole number of at least 1", 4, "limits.burst"),
    "wide window": ("limits: {max_in_flight: 1025}", "from 1 to 1024", 4, "limits.max_in_flight"),
    "short time-out": (
        "limits: {attempt_timeout_s: 0.05}",
        "0.1 to 300 seconds",
        4,
        "limits.attempt_timeout_s",
    ),
    "many attempts": ("limits: {max_attempts: 101}", "from 1 to 100", 4, "limits.max_attempts"),
    "no patience": ("limits: {patience_s: -1}", "0 or more seconds", 4, "limits.patience_s"),
    "window": ("limits: {token_window_s: soon}", "0 or more seconds, not 'soon'", 4, "limits.token_window_s"),
    "mapping for a number": ("limits: {burst: {a: b}}", "not a mapping", 4, "limits.burst"),
    "tag of the service": ("tags: {AWS:x: 1}", "belong to the service", 4, None),
    "tag of ours": ("tags: {dispatcher-run: 1}", "are set by the dispatcher", 4, None),
    "long tag key": (f"tags: {{{'k' * 129}: 1}}", "must be 1 to 128 characters", 4, None),
    "long tag value": (f"tags: {{a: {'v' * 257}}}", "must be 0 to 256 characters", 4, "tags.a"),
    "nested tag": ("tags: {a: [b]}", "must be text, not a list", 4, "tags.a"),
    "49 tags": (
        f"tags: {{{', '.join(f'k{n}: v' for n in range(49))}}}",
        "49 tags are too many, at most 48 beside the 2 system tags",
        4,
        "tags",
    ),
    "51 tags": (
        f"system_tags: false\ntags: {{{', '.join(f'k{n}: v' for n in range(51))}}}",
        "51 tags are too many, at most 50",
        5,
        "tags",
    ),
    "plain http": ("endpoint_url: http://example.com", "plain http is for loopback only", 4, "endpoint_url"),
    "no url": ("endpoint_url: example.com", "must be a URL like", 4, "endpoint_url"),
    "broken url": ("endpoint_url: 'https://[::1'", "is not a URL", 4, "endpoint_url"),
    "url with a query": ("endpoint_url: https://h/?a=b", "must not have a query", 4, "endpoint_url"),
    "anchor": ("region: &r us-west-2", "an anchor has no place", 4, None),
    "alias": ("region: *r", "an alias has no place", 4, None),
    "alias as key": ("*r : 1", "an alias has no place", 4, None),
    "tag": ("region: !!str us-west-2", "a tag has no place", 4, None),
    "merge key": ("limits: {<<: {burst: 1}}", "a merge key has no place", 4, None),
    "mapping as key": ("? {a: b}\n: c", "a key that is not text", 4, None),
    "empty key": ("?\n: c", "an empty key", 4, None),
    "second document": ("---\nname: m", "a second document", 4, None),
    "too deep": (f"tags: {'[' * 25}{']' * 25}", "nesting this deep", 4, None),
    "not YAML": ("tags: {a: b", "is not YAML", 5, None),
    "tab": ("limits:\n\tburst: 1", "is not YAML", 5, None),
    "control character": ("region: \x07", "is not YAML", 4, None),
    "NUL": ("region: a\0b", "has a NUL byte", 4, None),
}


@pytest.mark.parametrize("case", BAD_YAML)
def test_what_is_wrong_is_named_with_line_and_key(tmp_path: Path, case: str) -> None:
    """Every refusal is exit code 2 and names the file, the line and the key."""
    text, message, line, key = BAD_YAML[case]
    error = refusal(write(tmp_path, f"{BASE}{text}\n"))
    assert message in error.message
    assert error.line == line
    assert f"m.yaml:{line}: " in error.message
    if key is not None:
        assert error.key == key
        assert f"{key}: " in error.message


BAD_INVENTORY = {
    "both": ("{path: a.csv, targets: [a]}", "give path or targets, not both", "inventory"),
    "neither": ("{format: csv}", "give a path, or targets", "inventory"),
    "a text": ("fleet.csv", "must be a mapping, not text", "inventory"),
    "no value": ("", "has no value", "inventory"),
    "unknown format": ("{path: a.csv, format: cvs}", "not 'cvs', did you mean 'csv'?", "inventory.format"),
    "no suffix": ("{path: fleet}", "'fleet' does not tell its format", "inventory.path"),
    "stdin": ("{path: '-'}", "does not tell its format", "inventory.path"),
    "other suffix": ("{path: fleet.xlsx.gz}", "does not tell its format", "inventory.path"),
    "empty path": ("{path: ' '}", "must not be empty", "inventory.path"),
    "no targets": ("{targets: []}", "is an empty list", "inventory.targets"),
    "one target": ("{targets: smd-1}", "must be a list of texts, not text", "inventory.targets"),
    "empty target": ("\n  targets:\n  - a\n  -", "item 2 has no value", "inventory.targets"),
    "no text in targets": (
        "{targets: [a, {b: c}]}",
        "item 2 must be text, not a mapping",
        "inventory.targets",
    ),
    "where by list": ("{path: a.csv, where: [a]}", "must be a mapping, not a list", "inventory.where"),
    "where nothing": ("{path: a.csv, where: {site: []}}", "is an empty list", "inventory.where.site"),
    "where without columns": ("{path: a.txt, where: {a: b}}", "txt has none", "inventory.where"),
    "where with targets": ("{targets: [a], where: {a: b}}", "no meaning beside targets", "inventory.where"),
    "misspelt": ("{paht: a.csv}", "did you mean 'path'?", "inventory.paht"),
}


@pytest.mark.parametrize("case", BAD_INVENTORY)
def test_an_inventory_that_cannot_be_meant_is_refused(tmp_path: Path, case: str) -> None:
    """The inventory's keys must be known, of the right kind, and go together."""
    text, message, key = BAD_INVENTORY[case]
    error = refusal(write(tmp_path, f"name: n\ncommand: reboot\ninventory: {text}\n"))
    assert message in error.message
    assert error.key == key
    assert error.line == (4 if text.startswith("\n") else 3)


BAD_JSON = {
    "given twice": ('{"name": "a", "name": "b"}', "name: is given twice"),
    "not a number": ('{"limits": {"rate_per_s": NaN}}', "NaN is not a number"),
    "too large": ('{"limits": {"rate_per_s": 1e999}}', "limits.rate_per_s: must be more than 0, not inf"),
    "huge": (f'{{"limits": {{"rate_per_s": 1{"0" * 400}}}}}', "limits.rate_per_s: must be more than 0"),
    "huger": (f'{{"limits": {{"burst": 1{"0" * 5000}}}}}', "is not JSON"),
    "number for text": ('{"account": 123456789012}', "account: must be text, not a number"),
    "flag for a number": ('{"limits": {"burst": true}}', "limits.burst: must be a whole number"),
    "text for a number": ('{"limits": {"burst": "1"}}', "limits.burst: must be a whole number"),
    "text for a flag": ('{"system_tags": "true"}', "system_tags: must be true or false, not 'true'"),
    "null": ('{"region": null}', "region: has no value"),
    "surrogate": ('{"region": "\\ud800"}', "region: is not valid Unicode"),
    "NUL": ('{"inventory": {"path": "a\\u0000.csv"}}', "inventory.path: has a NUL character"),
    "number as target": ('{"inventory": {"targets": [1]}}', "inventory.targets: item 1 must be text"),
    "a list": ("[1]", "a manifest is a mapping of keys to values, not a list"),
    "cut off": ('{"name":\n "a"', "m.json:2: is not JSON"),
    "deep": ("[" * 100_000, "nested too deep"),
}


@pytest.mark.parametrize("case", BAD_JSON)
def test_json_must_have_the_right_types(tmp_path: Path, case: str) -> None:
    """JSON has types, so none is guessed; keys are named, and lines where the parser tells."""
    text, message = BAD_JSON[case]
    assert message in refusal(write(tmp_path, text, "m.json")).message


BAD_TOML = {
    "date": ("run_key = 2026-11-23", "run_key: must be text, not a date"),
    "number for text": ("account = 123456789012", "account: must be text, not a number"),
    "not finite": ("limits.rate_per_s = nan", "limits.rate_per_s: must be more than 0, not nan"),
    "given twice": ('name = "a"\nname = "b"\n', "m.toml:2: is not TOML"),
    "broken": ("name = \n", "m.toml:1: is not TOML"),
    "deep": (f"a = {'[' * 5000}", "m.toml: "),
}


@pytest.mark.parametrize("case", BAD_TOML)
def test_toml_must_have_the_right_types(tmp_path: Path, case: str) -> None:
    """TOML has types too; a date is not a text."""
    text, message = BAD_TOML[case]
    assert message in refusal(write(tmp_path, text, "m.toml")).message


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("m.yaml", b"", "the manifest is empty"),
        ("m.yaml", b" \n\n", "the manifest is empty"),
        ("m.yaml", b"# only a comment\n", "the manifest is empty"),
        ("m.yaml", b"- a\n- b\n", "a manifest is a mapping of keys to values, not a list"),
        ("m.yaml", b"reboot\n", "a manifest is a mapping of keys to values, not text"),
        ("m.yaml", "name: n\n".encode("utf-16"), "m.yaml:1: is UTF-16"),
        ("m.yaml", b"name: n\nregion: \xff\n", "m.yaml:2: is not UTF-8"),
        ("m.csv", b"name\n", "the suffix '.csv' is not a manifest's"),
        ("m", b"name\n", "the suffix '' is not a manifest's"),
    ],
)
def test_a_file_that_is_no_manifest_is_refused(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    """Empty files, other shapes, other encodings and other suffixes are one clear sentence."""
    assert message in refusal(write(tmp_path, data, name)).message


def test_a_missing_file_a_folder_and_a_huge_file_are_refused(tmp_path: Path) -> None:
    """What cannot be read as a file is refused by name."""
    assert "no such file" in refusal(tmp_path / "gone.yaml").message
    (tmp_path / "folder.yaml").mkdir()
    assert "is a folder" in refusal(tmp_path / "folder.yaml").message
    huge = tmp_path / "huge.yaml"
    with huge.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    assert "is larger than 64 MiB" in refusal(huge).message


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_refused(tmp_path: Path) -> None:
    """A manifest that may not be read is refused by name."""
    path = write(tmp_path, BASE)
    path.chmod(0)
    assert "cannot be read: Permission denied" in refusal(path).message


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    """One reading tells everything, each problem with its line; in a list each names the file too."""
    text = "nmae: n\ncommand: reboots\nregion: x\naccount: y\nlimits:\n  burst: 0\n  rate_per_s: -1\n"
    error = refusal(write(tmp_path, text))
    assert (error.line, error.key) == (1, "nmae")
    for part in (
        "did you mean 'name'?",
        "line 2: command: ",
        "did you mean 'reboot'?",
        "line 6: limits.burst: ",
    ):
        assert part in error.message
    assert error.count == len(error.problems) == 7
    assert error.problems[1].startswith(f"{tmp_path / 'm.yaml'}:2: command: must be reboot or unlock")


def test_twenty_problems_are_spelled_out(tmp_path: Path) -> None:
    """A file that is no manifest at all does not fill the screen."""
    text = BASE + "".join(f"key{number}: x\n" for number in range(30))
    error = refusal(write(tmp_path, text))
    assert error.count == 30
    assert len(error.problems) == 21
    assert error.message.endswith("; and 10 more")


@pytest.mark.parametrize("name", ["m.json", "m.toml"])
def test_a_number_of_too_many_digits_is_refused_in_our_words(tmp_path: Path, name: str) -> None:
    """Python's advice to raise its limit is no advice to an operator."""
    text = {"m.json": '{"a": %s}', "m.toml": "a = %s"}[name] % ("9" * 5000)
    assert refusal(write(tmp_path, text, name)).message.endswith("a number has too many digits")


def test_a_part_of_a_key_is_a_near_miss(tmp_path: Path) -> None:
    """`rate` and `timeout` are what people write."""
    message = refusal(write(tmp_path, BASE + "limits: {rate: 1, timeout: 2}\n")).message
    assert "did you mean 'rate_per_s'?" in message
    assert "did you mean 'attempt_timeout_s'?" in message


def test_one_slip_is_one_problem(tmp_path: Path) -> None:
    """A misspelt key that must be there is not missing as well."""
    error = refusal(write(tmp_path, BASE.replace("command", "comand")))
    assert error.count == 1
    assert error.message.endswith("comand: unknown key, did you mean 'command'?")


def test_missing_keys_are_named(tmp_path: Path) -> None:
    """A manifest without a name, a command and an inventory is told all three."""
    message = refusal(write(tmp_path, "region: us-west-2\n")).message
    for key in ("name", "command", "inventory"):
        assert f"{key}: is missing" in message


def test_a_password_in_an_endpoint_is_not_repeated(tmp_path: Path) -> None:
    """No secret enters a message."""
    error = refusal(write(tmp_path, f"{BASE}endpoint_url: https://me:hunter2@example.com\n"))
    assert "must not hold credentials" in error.message
    assert "hunter2" not in error.one_line()
