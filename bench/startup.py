"""`dispatcher --help`: what every use of the command pays before anything is done."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from bench.harness import Figure, Figures, Options, scratch


def measure(options: Options) -> Figures:
    """Time the installed command, and Python doing nothing for comparison."""
    installed = Path(sys.executable).with_name("dispatcher")
    command = [str(installed)] if installed.exists() else [sys.executable, "-m", "dispatcher"]
    samples: dict[str, list[float]] = {"help": [], "python": []}
    with scratch() as place:
        for _ in range(options.repetitions(10)):
            for name, arguments in (
                ("help", [*command, "--help"]),
                ("python", [sys.executable, "-c", "pass"]),
            ):
                began_s = time.perf_counter()
                done = subprocess.run(arguments, env=place.environment, capture_output=True, check=True)
                samples[name].append(1000 * (time.perf_counter() - began_s))
                if name == "help" and b"resume" not in done.stdout:
                    raise RuntimeError("dispatcher --help does not show its verbs")
    return {
        "dispatcher --help": Figure(tuple(samples["help"]), "ms", 200),
        "python -c pass": Figure(tuple(samples["python"]), "ms"),
    }
