"""Bad input as tables: what a case is, and the manifests."""

# ruff: noqa: E501 - a table is read best with a row a line

from __future__ import annotations

import json
from dataclasses import dataclass, field

GOOD = "name: n\ncommand: reboot\nregion: us-west-2\n"
"""Three lines: what a case adds begins at line 4."""
TARGETS = "inventory: {targets: [smd-a]}\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One bad input: files, a command, what stderr must say."""

    says: tuple[str, ...]
    files: dict[str, str | bytes] = field(default_factory=dict)
    words: tuple[str, ...] = ("run", "m.yaml")
    env: dict[str, str | None] = field(default_factory=dict)
    code: int = 2
    stops_root: bool = True
    """Whether root is refused too."""
    plans: bool = False
    """Whether it is found out only once the plan is stored: that binds nothing, and can be planned anew."""
    setup: str = ""
    """What files cannot be: `mkdir NAME`, `socket NAME`, `link NAME TO`, `chmod NAME`."""
    stdin: bytes = b""


def manifest(text: str | bytes, *says: str, name: str = "m.yaml") -> Case:
    """A whole manifest."""
    return Case(files={name: text}, says=says or (name,), words=("run", name))


def keys(text: str, *says: str) -> Case:
    """More keys of a sound YAML manifest, from line 5."""
    return manifest(GOOD + TARGETS + text, *says)


def limits(text: str, key: str, *says: str) -> Case:
    """One bad limit."""
    return keys(f"limits: {{{key}: {text}}}\n", f"m.yaml:5: limits.{key}: must be ", *says)


def inventory(
    data: str | bytes | None, *says: str, name: str = "f.csv", more: str = "", setup: str = ""
) -> Case:
    """A bad inventory below a sound manifest."""
    text = f"{GOOD}inventory:\n  path: {json.dumps(name)}\n{more}"
    files: dict[str, str | bytes] = {"m.yaml": text}
    if data is not None:
        files[name] = data
    return Case(files=files, says=says, setup=setup)


def flags(*words: str, says: tuple[str, ...], **options: object) -> Case:
    """A sound manifest, run with bad flags."""
    made = {"files": {"m.yaml": GOOD + TARGETS}, "words": ("run", "m.yaml", *words)}
    return Case(says=says, **{**made, **options})  # type: ignore[arg-type]


def verb(*words: str, says: tuple[str, ...]) -> Case:
    """Another verb, with nothing known yet."""
    return Case(words=words, says=says)


def env(name: str, value: str, *says: str) -> Case:
    """A sound manifest in a bad environment."""
    return flags(says=says or (f"{name}: must be ",), env={name: value})


def config(text: str | bytes, *says: str) -> Case:
    """A sound manifest with a bad settings file."""
    files = {"m.yaml": GOOD + TARGETS, "s.toml": text}
    return flags("--config", "s.toml", says=says, files=files)


def name_of(text: str) -> Case:
    """A name that may not be one: it is part of the checkpoint's path."""
    return manifest(f"name: {text}\ncommand: reboot\n{TARGETS}", "m.yaml:1: name: must be 1 to 64 letters")


JSON = {"name": "n", "command": "reboot", "region": "us-west-2", "inventory": {"targets": ["smd-a"]}}

MANIFESTS = {
    # files
    "no file": Case(says=("m.yaml: no such file",)),
    "folder": Case(says=("m.yaml: is a folder",), setup="mkdir m.yaml"),
    "symlink loop": Case(says=("m.yaml: cannot be read: Too many levels",), setup="link m.yaml m.yaml"),
    "unreadable": Case(
        files={"m.yaml": GOOD}, says=("m.yaml: cannot be read: Permission",), setup="chmod m.yaml",
        stops_root=False,
    ),
    "other suffix": manifest(GOOD, "m.yml.bak: the suffix '.bak' is not", name="m.yml.bak"),
    "empty": manifest("", "m.yaml: the manifest is empty"),
    "UTF-16": manifest(GOOD.encode("utf-16"), "m.yaml:1: is UTF-16"),
    "UTF-16 without a mark": manifest(GOOD.encode("utf-16-le"), "m.yaml:1: has a NUL byte"),
    "Latin-1": manifest((GOOD + "description: caf\xe9\n").encode("latin-1"), "m.yaml:4: is not UTF-8"),
    "NUL": manifest(GOOD.encode() + b"tags: {a: \0}\n", "m.yaml:4: has a NUL byte"),
    "binary": manifest(bytes(range(1, 256)), "m.yaml:"),
    # YAML
    "YAML syntax": manifest("name: [n\ncommand: reboot\n", "m.yaml:2: is not YAML"),
    "YAML tab": manifest(GOOD + "tags:\n\ta: b\n", "m.yaml:5: is not YAML"),
    "YAML control character": manifest(GOOD + "description: a\x07b\n", "m.yaml:4: is not YAML"),
    "YAML list": manifest("- name: n\n", "m.yaml: a manifest is a mapping of keys to values, not a list"),
    "YAML text": manifest("reboot them all\n", "not text"),
    "YAML anchors": keys("tags: &a {a: b}\n", "m.yaml:5: an anchor has no place"),
    "YAML bomb": keys(
        "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: &d [*c, *c]\n", "m.yaml:5: an anchor has no place"
    ),
    "YAML tag": keys("account: !!python/object/apply:os.system [id]\n", "m.yaml:5: a tag has no place"),
    "YAML key twice": keys("command: unlock\n", "m.yaml:5: command: is given twice, first in line 2"),
    "YAML deep": keys(f"tags: {'[' * 9000}{']' * 9000}\n", "m.yaml:5: is not YAML", "maximum nesting depth"),
    "YAML deep blocks": keys("".join(f"{' ' * n}a:\n" for n in range(2000)), "nesting this deep"),
    # JSON and TOML
    "JSON syntax": manifest('{"name": "n",\n}', "m.json:2: is not JSON", name="m.json"),
    "JSON cut off": manifest(json.dumps(JSON)[:-2], "m.json:1: is not JSON", name="m.json"),
    "JSON NaN": manifest('{"limits": {"rate_per_s": NaN}}', "m.json: is not JSON: NaN", name="m.json"),
    "JSON key twice": manifest('{"name": "n", "name": "o"}', "m.json: name: is given twice", name="m.json"),
    "JSON deep": manifest("[" * 100_000, "m.json: the manifest is nested too deep", name="m.json"),
    "JSON digits": manifest('{"limits": {"burst": ' + "9" * 5000 + "}}", "m.json: is not JSON: a number has too many digits", name="m.json"),
    "JSON lone surrogate": manifest(
        json.dumps(JSON | {"description": "\ud800"}), "m.json: description: is not valid Unicode", name="m.json"
    ),
    "JSON number as text": manifest(
        json.dumps(JSON | {"name": 7}), "m.json: name: must be text, not a number", name="m.json"
    ),
    "JSON flag as number": manifest(
        json.dumps(JSON | {"limits": {"burst": True}}), "m.json: limits.burst: must be a whole", name="m.json"
    ),
    "TOML syntax": manifest("name = \n", "m.toml:1: is not TOML", name="m.toml"),
    "TOML nan": manifest("limits.rate_per_s = nan\n", "m.toml: limits.rate_per_s: must be", name="m.toml"),
    "TOML deep": manifest("a = " + "[" * 9000, "m.toml: ", name="m.toml"),
    # keys
    "unknown key": keys("comand: reboot\n", "m.yaml:5: comand: unknown key, did you mean 'command'?"),
    "unknown key below": keys("limits: {rate: 1}\n", "limits.rate: unknown key, did you mean 'rate_per_s'?"),
    "key in the wrong place": keys("path: f.csv\n", "path: unknown key, did you mean 'inventory.path'?"),
    "long unknown key": keys(f"{'k' * 1000}: 1\n", "m.yaml:5: kkk"),
    "missing keys": manifest("region: us-west-2\n", *(f": {k}: is missing" for k in ("name", "command", "inventory"))),
    "no value": keys("account:\n", "m.yaml:5: account: has no value"),
    "command": manifest("name: n\ncommand: rebot\n" + TARGETS, "m.yaml:2: command: ", "did you mean 'reboot'?"),
    "name that climbs": name_of("../x"),
    "name with a slash": name_of("a/b"),
    "name that hides": name_of(".n"),
    "name with a line end": name_of(r'"n\n"'),
    "name with an escape": name_of(r'"\e[31m"'),
    "empty name": name_of('""'),
    "long name": name_of("n" * 65),
    "name in other letters": name_of("ноч"),
    "run key that climbs": keys("run_key: ../x\n", "m.yaml:5: run_key: must be 1 to 64 letters"),
    "two keys": keys("account: 1\nendpoint_url: x\n", "m.yaml:5: account: must be", "6: endpoint_url: must be a URL"),
    "region with a host": manifest(f"name: n\ncommand: reboot\nregion: evil.com/us-west-2\n{TARGETS}", "m.yaml:3: region"),
    "account": keys("account: 12345678901\n", "m.yaml:5: account: must be the 12 digits"),
    "huge description": keys(f"description: {'x' * 3_000_000}\n", "m.yaml:5: description: must be"),
    "tag of the service": keys("tags: {'aws:x': a}\n", "m.yaml:5: tags.'aws:x': tag keys starting with aws:"),
    "system tags": keys("system_tags: yes\n", "m.yaml:5: system_tags: must be true or false, not 'yes'"),
    "endpoint over http": keys("endpoint_url: http://example.com\n", "m.yaml:5: endpoint_url: plain http is for loopback"),
    "endpoint like loopback": keys("endpoint_url: http://127.0.0.1.nip.io\n", "plain http is for loopback only"),
    "endpoint with a user": keys("endpoint_url: https://me:hunter2@h\n", "m.yaml:5: endpoint_url: must not hold credentials"),
    "endpoint with a query": keys("endpoint_url: https://h/?a=b\n", "m.yaml:5: endpoint_url: must not have a query"),
    "endpoint with a bad port": keys("endpoint_url: http://127.0.0.1:99999\n", "m.yaml:5: endpoint_url: is not a URL"),
    "rate of zero": limits("0", "rate_per_s", "not '0'"),
    "negative rate": limits("-1", "rate_per_s"),
    "rate of NaN": limits(".nan", "rate_per_s"),
    "rate without end": limits(".inf", "rate_per_s"),
    "rate as a list": limits("[1]", "rate_per_s", "not a list"),
    "burst of zero": limits("0", "burst"),
    "inventory of text": manifest(GOOD + "inventory: f.csv\n", "m.yaml:4: inventory: must be a mapping, not text"),
    "empty inventory": manifest(GOOD + "inventory: {}\n", "m.yaml:4: inventory: give a path, or targets"),
    "path and targets": manifest(GOOD + "inventory: {path: f.csv, targets: [a]}\n", "give path or targets, not both"),
    "no targets": manifest(GOOD + "inventory: {targets: []}\n", "m.yaml:4: inventory.targets: is an empty list"),
    "targets of text": manifest(GOOD + "inventory: {targets: smd-a}\n", "inventory.targets: must be a list"),
    "nested targets": manifest(GOOD + "inventory: {targets: [[a]]}\n", "inventory.targets: item 1 must be text"),
    "bad targets": manifest(GOOD + "inventory: {targets: [a, b c, '']}\n", "inventory.targets: target 2: ", "target 3: "),
    "unknown format": manifest(GOOD + "inventory: {path: f.csv, format: cvs}\n", "did you mean 'csv'?"),
    "empty where": manifest(GOOD + "inventory: {path: f.csv, where: {site: []}}\n", "inventory.where.site: is an empty list"),
    "stdin without a format": manifest(GOOD + "inventory: {path: '-'}\n", "inventory.path: '-' does not tell its format"),
}  # fmt: skip
