"""Peers that need Python: `python -m bench.peers.sdk NAME URL IDS WORKERS` prints what it cost, as JSON."""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

SERVICE = "snow-device-management"
KEYS = {"aws_access_key_id": "bench", "aws_secret_access_key": "bench", "region_name": "us-west-2"}


def _call(ids: list[str], first: int) -> dict[str, Any]:
    return {
        "targets": ids[first : first + 10],
        "clientToken": f"{first:064d}",
        "command": {"reboot": {}},
    }


def _cpu_s() -> float:
    return time.process_time()


def boto3(url: str, ids: list[str], workers: int) -> list[float]:
    """Send from threads, one client for all."""
    import boto3 as sdk
    from botocore.config import Config

    config = Config(retries={"total_max_attempts": 1}, max_pool_connections=workers, proxies={})
    client = sdk.client(SERVICE, endpoint_url=url, config=config, **KEYS)

    def send(first: int) -> float:
        began_s = time.perf_counter()
        client.create_task(**_call(ids, first))
        return 1e3 * (time.perf_counter() - began_s)

    with ThreadPoolExecutor(workers) as pool:
        return _timed(lambda: list(pool.map(send, range(0, len(ids), 10))))


def aiobotocore(url: str, ids: list[str], workers: int) -> list[float]:
    """Send from as many tasks as may be in flight, on uvloop."""
    import uvloop
    from aiobotocore.config import AioConfig
    from aiobotocore.session import AioSession

    latencies: list[float] = []

    async def main() -> None:
        config = AioConfig(
            retries={"total_max_attempts": 1},
            max_pool_connections=workers,
            parameter_validation=False,
            proxies={},
        )
        async with AioSession().create_client(SERVICE, endpoint_url=url, config=config, **KEYS) as client:
            starts = iter(range(0, len(ids), 10))

            async def worker() -> None:
                for first in starts:
                    began_s = time.perf_counter()
                    await client.create_task(**_call(ids, first))
                    latencies.append(1e3 * (time.perf_counter() - began_s))

            _begin()
            await asyncio.gather(*(worker() for _ in range(workers)))
            _end()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
    return latencies


def cli(url: str, ids: list[str], workers: int) -> list[float]:  # noqa: ARG001
    """Start the AWS CLI once a batch, two at once: a process is a whole interpreter."""
    if shutil.which("aws") is None:
        print("the AWS CLI is not installed", file=sys.stderr)
        sys.exit(os.EX_UNAVAILABLE)
    lines = "".join(f"{first:064d} {' '.join(ids[first : first + 10])}\n" for first in range(0, len(ids), 10))
    script = (
        'token=$1; shift; exec aws snow-device-management create-task --endpoint-url "$0" --region us-west-2'
        ' --command "reboot={}" --client-token "$token" --targets "$@" > /dev/null'
    )
    command = ["xargs", "-P", "2", "-L", "1", "sh", "-c", script, url]
    keys = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench"}
    _begin()
    subprocess.run(command, input=lines, text=True, check=True, env=os.environ | keys)
    _end(resource.RUSAGE_CHILDREN)
    return []


def wrk(url: str, ids: list[str], workers: int) -> list[float]:
    """Load the stub with ready-made requests, each batch once, without a signature."""
    script = Path(sys.argv[3]).with_suffix(".lua")
    bodies = ",\n".join(json.dumps(json.dumps(_call(ids, first))) for first in range(0, len(ids), 10))
    script.write_text(
        f"bodies={{{bodies}}}\nn=0\n"
        'request=function() n=n%#bodies+1; return wrk.format("POST","/task",nil,bodies[n]) end\n',
        encoding="utf-8",
    )
    command = ["wrk", "-t1", f"-c{workers}", "-d2s", "--latency", "-s", str(script), url]
    _begin()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    _end(resource.RUSAGE_CHILDREN)
    found = re.search(r"(\d+) requests in", done.stdout)
    assert found is not None
    factor = int(found[1]) / (len(ids) / 10)  # it sends until the time is up: the same batches again
    for key in _spent:
        _spent[key] /= factor
    return []


_spent: dict[str, float] = {}
_began: list[float] = []


def _begin() -> None:
    _began[:] = [_cpu_s(), time.perf_counter()]


def _end(who: int = resource.RUSAGE_SELF) -> None:
    used = resource.getrusage(who)
    cpu_s = _cpu_s() - _began[0] if who == resource.RUSAGE_SELF else used.ru_utime + used.ru_stime
    _spent.update(cpu_s=cpu_s, wall_s=time.perf_counter() - _began[1])


def _timed(work: Callable[[], list[float]]) -> list[float]:
    _begin()
    found = work()
    _end()
    return found


if __name__ == "__main__":
    name, where, path, count = sys.argv[1:]
    send = {"boto3": boto3, "aiobotocore": aiobotocore, "cli": cli, "wrk": wrk}[name]
    latencies_ms = send(where, Path(path).read_text(encoding="ascii").split(), int(count))
    print(json.dumps({**_spent, "latencies_ms": latencies_ms}))
