"""Bad input as tables: inventories, flags and environments."""

# ruff: noqa: E501 - a table is read best with a row a line

from __future__ import annotations

import gzip

from tests.e2e.bad_manifests import GOOD, TARGETS, Case, config, env, flags, inventory, verb

GZ = gzip.compress(b"id\nsmd-a\n")
WHERE = "  where: "
LIVE = {"DISPATCHER_ENDPOINT_URL": None, "HTTPS_PROXY": "http://127.0.0.1:1"}
"""Real endpoints are asked for, and out of reach."""

INVENTORIES = {
    "no inventory": inventory(None, "f.csv: no such file, looked for at f.csv"),
    "inventory is a folder": inventory(None, "f.csv: is a folder, not an inventory", setup="mkdir f.csv"),
    "inventory is a device": inventory(None, "/dev/zero: is a device", name="/dev/zero", more="  format: txt\n"),
    "inventory is a socket": inventory(None, "f.csv: ", setup="socket f.csv"),
    "inventory in a loop": inventory(None, "f.csv: cannot be read: Too many levels", setup="link f.csv f.csv"),
    "dangling link": inventory(None, "f.csv: no such file", setup="link f.csv gone.csv"),
    "unreadable inventory": Case(
        files={"m.yaml": GOOD + "inventory: {path: f.csv}\n", "f.csv": "id\na\n"},
        says=("f.csv: cannot be read: Permission",), setup="chmod f.csv", stops_root=False,
    ),
    "long path": inventory(None, "cannot be read: File name too long", name="f" * 5000 + ".csv"),
    "wrong suffix": inventory("id\na\n", "m.yaml:5: inventory.path: 'f.xlsx' does not tell its format", name="f.xlsx"),
    "empty csv": inventory("", "f.csv: names no devices"),
    "empty txt": inventory("# none\n", "f.txt: names no devices", name="f.txt"),
    "empty stdin": inventory(None, "stdin: names no devices", name="-", more="  format: txt\n"),
    "no id column": inventory("host,site\na,b\n", "f.csv:1: has none of the columns", "only 'host', 'site'"),
    "id column near": inventory("devce_id\na\n", "f.csv:1: ", "did you mean 'device_id'?"),
    "named column near": inventory(
        "serial\na\n", "f.csv:1: has no column 'seral'", "did you mean 'serial'?", more="  id_column: seral\n"
    ),
    "semicolons": inventory("id;site\na;b\n", "f.csv:1: ", "the header seems to be separated by ';'"),
    "headless": inventory("smd-a\nsmd-b\n", "f.csv:1: has none of the columns"),
    "XLSX in csv": inventory(b"PK\x03\x04\x14\0\x06\0" + bytes(99), "f.csv:1: has a NUL byte"),
    "id with a space": inventory("id\nsmd a\n", "f.csv:2: the id 'smd a' has white space"),
    "id with an escape": inventory("id\n\x1b]0;x\x07\n", r"f.csv:2: the id '\x1b]0;x\x07' has white space or a control"),
    "long id": inventory(f"id\n{'x' * 65}\n", "f.csv:2: ", "is longer than 64 characters"),
    "empty id": inventory("id,site\n,pdx1\n", "f.csv:2: has no id"),
    "ragged row": inventory("id,site\na,b,c\n", "f.csv:2: has 3 fields, the header has 2"),
    "many bad rows": inventory("id\n" + "a b\n" * 99, "error: 99 problems", "f.csv:21: ", "f.csv: 99 bad rows in all, fix them or"),
    "open quote": inventory('id,n\na,"b\n', "f.csv:2: has a quoted field that never ends"),
    "NUL in csv": inventory(b"id\na\n\0\n", "f.csv:3: has a NUL byte"),
    "Latin-1 csv": inventory(b"id\na\ncaf\xe9\n", "f.csv:3: is not UTF-8"),
    "huge line": inventory(b"id\n" + b"x" * (3 << 20), "f.csv:2: has a line longer than 1 MiB"),
    "huge field": inventory(b"id,n\na," + b"x" * 200_000 + b"\n", "f.csv:2: has a field larger than 128 KiB"),
    "gzip bomb": inventory(gzip.compress(b"x" * (64 << 20)), "f.txt.gz:1: has a line longer", name="f.txt.gz"),
    "gzip cut off": inventory(GZ[:-6], "f.csv.gz: is not a whole gz file", name="f.csv.gz"),
    "no gzip": inventory("id\na\n", "f.csv.gz: is not a whole gz file", name="f.csv.gz"),
    "gzip without its suffix": inventory(GZ, "f.csv:1: "),
    "no zstd": inventory("id\na\n", "f.csv.zst: is not a whole zst file", name="f.csv.zst"),
    "zstd cut off": inventory(b"\x28\xb5\x2f\xfd\x24\x09", "f.csv.zst: is not a whole zst file", name="f.csv.zst"),
    "jsonl of lists": inventory('["a"]\n', "f.jsonl:1: must be an object or a text", name="f.jsonl"),
    "jsonl without the key": inventory('{"host":"a"}\n', "f.jsonl:1: has none of the columns", name="f.jsonl"),
    "jsonl losing the key": inventory('{"id":"a"}\n{"di":"b"}\n', "f.jsonl:2: has no id", name="f.jsonl"),
    "jsonl id twice": inventory('{"id":"a","id":"b"}\n', "f.jsonl:1: gives 'id' twice", name="f.jsonl"),
    "jsonl that is JSON": inventory('[\n{"id":"a"}\n]\n', "f.jsonl:1: is not JSON", name="f.jsonl"),
    "jsonl deep": inventory("[" * 50_000 + "\n", "f.jsonl:1: is nested too deep", name="f.jsonl"),
    "where of no column": inventory("id,site\na,b\n", "f.csv:1: has no column 'sit'", "did you mean 'site'?", more=WHERE + "{sit: b}\n"),
    "where of no key": inventory('{"id":"a","site":"b"}\n', "f.jsonl: has no column 'sit'", name="f.jsonl", more=WHERE + "{sit: b}\n"),
    "where matches nothing": inventory("id,site\na,b\n", "f.csv: names no devices: where leaves out 1 row", more=WHERE + "{site: c}\n"),
    "stdin": Case(
        files={"m.yaml": GOOD + "inventory: {path: '-', format: csv}\n"}, stdin=b"id\nsmd a\n", says=("stdin:2: the id",)
    ),
    "all rows skipped": flags(
        "--skip-bad-rows", says=("f.csv: names no devices: 1 bad row skipped",),
        files={"m.yaml": GOOD + "inventory: {path: f.csv}\n", "f.csv": "id\na b\n"},
    ),
}  # fmt: skip

FLAGS = {
    "no verb": verb("fly", says=("no command is called 'fly'",)),
    "verb near": verb("stauts", "x", says=("did you mean 'status'?",)),
    "no manifest": verb("run", says=("Missing argument 'MANIFEST'",)),
    "no run": verb("status", says=("Missing argument 'RUN|CHECKPOINT'",)),
    "empty manifest": verb("run", "", says=("no manifest is named",)),
    "folder as manifest": verb("plan", ".", says=(".: is a folder, not a manifest",)),
    "empty --config": flags("--config", "", says=("no settings file is named",)),
    "two manifests": flags("m.yaml", says=("unexpected extra argument (m.yaml)",)),
    "unknown flag": flags("--rat", "1", says=("--rat", "--rate")),
    "flag without a value": flags("--rate", says=("--rate", "requires an argument")),
    "flag with a value": flags("--yes=1", says=("--yes", "does not take a value")),
    "rate in words ": flags("--rate", "fast", says=("--rate: must be more than 0, not 'fast'",)),
    "negative --rate": flags("--rate", "-1", says=("--rate: must be more than 0, not '-1'",)),
    "--max-in-flight": flags("--max-in-flight", "9999", says=("--max-in-flight: must be a whole number from 1 to 1024",)),
    "--limit 0": flags("--limit", "0", says=("--limit: must be a whole number of at least 1",)),
    "--accept-removals": flags("--accept-removals", "all", says=("--accept-removals: must be a whole number",)),
    "--transport": flags("--transport", "aiobotocor", says=("--transport: must be", "did you mean 'aiobotocore'?")),
    "--rate-control": flags("--rate-control", "x", says=("--rate-control: must be learn or aimd or fixed",)),
    "empty --run-key": flags("--run-key", "", says=("--run-key: must be",)),
    "empty --checkpoint": flags("--checkpoint", "", says=("--checkpoint: must not be empty",)),
    "--checkpoint of nobody": flags("--checkpoint", "~nobody-at-all/c.db", says=("--checkpoint: ", "home folder")),
    "--checkpoint below a file": flags("--checkpoint", "m.yaml/c.db", says=("--checkpoint: ", "m.yaml is not a folder")),
    "--checkpoint too long": flags("--checkpoint", "x" * 300, says=("--checkpoint: a file's name has at most 255 bytes",)),
    "--checkpoint at a folder": flags("--checkpoint", ".", says=("is not a file; give another --checkpoint",), code=4),
    "--checkpoint at the root": flags("--checkpoint", "/", says=("--checkpoint: '/' names no file",)),
    "--checkpoint at a text": flags("--checkpoint", "m.yaml", says=("m.yaml is damaged or is not a dispatcher",), code=4),
    "--endpoint-url over http": flags("--endpoint-url", "http://example.com", says=("--endpoint-url: plain http is for",)),
    "--endpoint-url secret": flags("--endpoint-url", "https://u:hunter2@h", says=("--endpoint-url: must not hold credentials",)),
    "--log-file in no folder": flags("--log-file", "none/log", says=("--log-file none/log: No such file",)),
    "--log-file at a folder": flags("--log-file", ".", says=("--log-file .: Is a directory",)),
    "no terminal to ask at": flags(says=("there is no terminal to ask at", "--yes"), env=LIVE, plans=True),
    "no settings file": flags("--config", "none.toml", says=("none.toml: no such file",)),
    "settings folder": flags("--config", ".", says=(".: is a folder, not a settings file",)),
    "settings syntax": config("burst =\n", "s.toml:1: is not TOML"),
    "settings key": config("rat_per_s = 1\n", "s.toml: rat_per_s: unknown key, did you mean 'rate_per_s'?"),
    "settings type": config('burst = "1"\n', "s.toml: burst: must be a whole number"),
    "settings in UTF-16": config("burst = 1\n".encode("utf-16"), "s.toml:1: is UTF-16"),
    "settings deep": config("a = " + "[" * 9000, "s.toml: "),
    "settings section": config("[limits]\nburst = 1\n", "s.toml: limits: unknown key"),
    "config": verb("config", "sho", says=("No such command 'sho'", "'show'")),
    "config of no manifest": verb("config", "show", "--manifest", "none.yaml", says=("none.yaml: no such file",)),
    "backup without a path": verb("backup", "nightly", says=("Missing argument 'PATH'",)),
    "backup to no path": verb("backup", "nightly", "", says=("no place for the copy is named",)),
    "report to no path": verb("report", "nightly", "-o", "", says=("--output: no file is named",)),
    "log to no path": flags("--log-file", "", says=("--log-file: no file is named",)),
    "emulator of a word": verb("emulator", "--devices", "x", says=("--devices", "'x'")),
    "emulator of no rate": verb("emulator", "--rate", "-1", says=("rate_per_s -1 is not more than 0",)),
    "emulator of a fault": verb("emulator", "--fault", "denid=1", says=("unknown fault 'denid'",)),
    "emulator of a port": verb("emulator", "--port", "99999", says=("--port", "99999")),
    "emulator of two fleets": verb("emulator", "--devices", "1", "--fleet", "f", says=("--devices and --fleet exclude",)),
    "emulator for all": verb("emulator", "--host", "0.0.0.0", says=("0.0.0.0", "--allow-remote")),
    "--format": verb("report", "x", "--format", "xml", says=("'--format'", "xml")),
    "--state": verb("report", "x", "--state", "acepted", says=("--state", "acepted", "did you mean 'accepted'?")),
    "no such run": verb("status", "nightly", says=("no run or checkpoint is called nightly",)),
    "run that climbs": verb("status", "../x", says=("no run or checkpoint is called ../x",)),
    "empty run": verb("status", "", says=("no run or checkpoint is called",)),
    "run with a NUL escape": verb("resume", "a\x1b[31m", says=(r"no run or checkpoint is called a\x1b[31m",)),
    "backup of nothing": verb("backup", "nightly", "b.db", says=("no run or checkpoint is called nightly",)),
    "long run": verb("status", "x" * 5000, says=("no run or checkpoint is called",)),
}  # fmt: skip

ENVIRONMENTS = {
    "DISPATCHER_RATE_PER_S": env("DISPATCHER_RATE_PER_S", "0"),
    "DISPATCHER_BURST": env("DISPATCHER_BURST", "many"),
    "DISPATCHER_YES": env("DISPATCHER_YES", "perhaps"),
    "DISPATCHER_REGION": env("DISPATCHER_REGION", "Oregon"),
    "DISPATCHER_RUN_KEY": env("DISPATCHER_RUN_KEY", "../up"),
    "DISPATCHER_ENDPOINT_URL": env("DISPATCHER_ENDPOINT_URL", "http://example.com", "DISPATCHER_ENDPOINT_URL: plain http"),
    "empty variable": env("DISPATCHER_BURST", ""),
    "empty state folder": env("DISPATCHER_STATE_DIR", "", "DISPATCHER_STATE_DIR: must not be empty"),
    "state folder is a file": env("DISPATCHER_STATE_DIR", "m.yaml", "DISPATCHER_STATE_DIR: ", "m.yaml is not a folder"),
    "state folder of nobody": env("DISPATCHER_STATE_DIR", "~nobody-at-all/s", "DISPATCHER_STATE_DIR: ", "home folder"),
    "settings, environment and flags": flags(
        "--rate", "x", "--limit", "0", "--config", "s.toml",
        says=("error: 7 problems", "s.toml: burst: ", "DISPATCHER_YES: ", "--rate: ", "--limit: ", "m.yaml:1: name: ", "m.yaml:2: command: ", "f.csv:2: "),
        files={"m.yaml": "name: a/b\ncommand: rebot\ninventory: {path: f.csv}\n", "f.csv": "id\na b\n", "s.toml": "burst = 0\n"},
        env={"DISPATCHER_YES": "1"},
    ),
    "unknown profile": flags("--profile", "nobody", says=("nobody",), plans=True),
    "AWS_PROFILE": flags(says=("nobody",), env={"AWS_PROFILE": "nobody"}, plans=True),
    "AWS configuration": flags(
        says=("aws.ini",), env={"AWS_CONFIG_FILE": "aws.ini"}, plans=True,
        files={"m.yaml": GOOD + TARGETS, "aws.ini": "[default\nregion = x\n"},
    ),
    "no region": Case(files={"m.yaml": f"name: n\ncommand: reboot\n{TARGETS}"}, says=("no region is set",)),
    "AWS_REGION": Case(
        files={"m.yaml": f"name: n\ncommand: reboot\n{TARGETS}"}, env={"AWS_REGION": "not a region"}, says=("the AWS configuration: region: must be a region",),
    ),
    "LANG=C": flags(
        says=("é.csv: no such file",), files={"m.yaml": GOOD + "inventory: {path: é.csv}\n"},
        env={"LANG": "C", "LC_ALL": "C"},
    ),
    "no HOME": flags(
        says=("f.csv: no such file",), files={"m.yaml": GOOD + "inventory: {path: f.csv}\n"}, env={"HOME": None},
    ),
}  # fmt: skip
