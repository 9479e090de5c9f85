"""What operators do: start, stop, edit, lose, restore and move a run, and what befalls their machines."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

from dispatcher.checkpoint.backup import back_up
from dispatcher.checkpoint.registry import Registry
from dispatcher.errors import DispatcherError
from dispatcher.manifest import InventorySpec, Manifest
from tests.simulation.loop import PROCESS

if TYPE_CHECKING:
    from pathlib import Path

    from tests.simulation.scenario import Item
    from tests.simulation.world import Process, World


class Operators:
    """All that people do to one run."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._inventory = world.folder / "fleet.txt"
        self._named = list(world.devices)
        self._gone: list[str] = []
        self._extra: dict[str, Any] = {}
        self._offered: set[str] = set()
        self._backup: Path | None = None
        self._aside: dict[Path, bytes] = {}
        self.verb = "run"
        self.must_take_over = False
        self.has_lost = False
        self._write()

    def _write(self) -> None:
        self._inventory.write_text("".join(f"{device}\n" for device in self._named), encoding="utf-8")

    def manifest(self) -> Manifest:
        return Manifest(
            name="sim", command=self._world.scenario.command, region="us-west-2",
            inventory=InventorySpec(path=self._inventory.name), base_dir=self._inventory.parent,
        )  # fmt: skip

    def limits(self) -> dict[str, Any]:
        return {**self._world.scenario.limits, **self._extra}

    def named(self) -> set[str]:
        return set(self._named)

    def offers(self, _manifest: Manifest) -> None:
        """A process was given the manifest: from now on it may hold, or not yet."""
        self._offered = set(self._named)
        self._world.witness.allowed |= self._offered

    def applied(self) -> None:
        """The manifest holds: what it does not name must not be sent any more."""
        self._world.witness.allowed = set(self._offered)

    def settle_down(self) -> None:
        """Do what a careful operator does at last: run the manifest, with patience and without a limit."""
        self.verb = "run"
        self._extra = {"patience_s": 3600.0}
        self.must_take_over = True
        last = self._world.processes[-1] if self._world.processes else None
        if self._aside and last is not None and "cannot be rebuilt" in str(last.error):
            self._world.log("the operator puts the checkpoint back")
            for path, content in self._aside.items():
                self._put(path, content)
            self._aside.clear()

    async def reconcile(self) -> None:
        """Look up what is in doubt: by the manifest where the checkpoint is gone."""
        world = self._world
        if world.is_amnesiac or world.is_shared:
            return
        is_there = world.checkpoint.exists()
        world.count("between", "reconcile" if is_there else "reconcile a lost one")
        await world.reconcile(str(world.checkpoint) if is_there else self.manifest())

    # Before a process starts

    async def before(self, life: int) -> None:
        self.verb = "run"
        self._extra.pop("limit", None)
        self.must_take_over = False
        for item in self._world.scenario.of_life("between", life):
            if item.what in ("gap", "days", "window_passes"):
                await asyncio.sleep(item.value if item.value >= 0.0 else self._until_window(item.value))
            did = getattr(self, f"_{item.what}", lambda _item: None)(item)
            self._world.log(f"operator: {item.what}{'' if did is not False else ' (skipped)'}")
            if did is not False:
                self._world.count("between", item.what)
        if life and self._world.rng.random() < 0.5:
            self.must_take_over = True

    def _until_window(self, margin_s: float) -> float:
        """Return how long it is until shortly before the oldest doubt can be asked about no more."""
        world = self._world
        world.is_late = True
        doubtful = [old.true_s for old in world.witness.departures if old.may_have_created]
        window_s = float(world.scenario.limits["token_window_s"])
        return max(0.0, min(doubtful, default=0.0) + window_s + margin_s - world.true_s())

    def _edit(self, item: Item) -> bool:
        if self._world.is_stale:
            return False
        rng = random.Random(item.value)
        removed = rng.sample(self._named, int(len(self._named) * rng.choice((0.0, 0.1, 0.4))))
        removed = removed[: len(self._named) - 1]
        back = rng.sample(self._gone, len(self._gone) // 2)
        new = [f"new-{item.life}-{n:03d}" for n in range(rng.choice((0, 3, 12)))]
        self._named = [device for device in self._named if device not in removed] + back + new
        self._gone = [device for device in self._gone if device not in back] + removed
        self._world.is_recut = True
        self._write()
        return True

    def _reorder(self, item: Item) -> None:
        rng = random.Random(item.value)
        rng.shuffle(self._named)
        rows = [*self._named, *rng.sample(self._named, min(3, len(self._named)))]
        self._inventory.write_text("".join(f"{device}\n" for device in rows), encoding="utf-8")

    def _files(self) -> list[Path]:
        checkpoint = self._world.checkpoint
        return [
            checkpoint,
            *(checkpoint.with_name(f"{checkpoint.name}{end}") for end in ("-wal", "-journal")),
        ]

    def _take_away(self) -> dict[Path, bytes]:
        """Take the checkpoint's files off the disk, and return what they held."""
        held = {path: path.read_bytes() for path in self._files() if path.exists()}
        for path in (*held, self._world.checkpoint.with_name(f"{self._world.checkpoint.name}-shm")):
            path.unlink(missing_ok=True)
            self._world.disk.forget(path)
        return held

    def _put(self, path: Path, content: bytes) -> None:
        with self._world.looking():
            path.unlink(missing_ok=True)
            for end in ("-wal", "-shm", "-journal"):
                if path == self._world.checkpoint:
                    path.with_name(f"{path.name}{end}").unlink(missing_ok=True)
        path.write_bytes(content)
        path.chmod(0o600)
        self._world.disk.forget(path)

    def _lose(self, _item: Item) -> bool:
        if not self._world.checkpoint.exists() or self._aside:
            return False
        record = Registry(self._world.host.state).get("sim")
        if record is None or record.first_sent_at is None:
            if self._world.witness.departures and not self._may_forget():
                return False
            self._forget()
        with self._world.looking():
            self._aside = self._take_away()
        self.has_lost = True
        self._world.witness.told.clear()  # nobody can know it any more but the service
        return True

    def _stale(self, _item: Item) -> bool:
        if self._backup is None or self._aside or not self._world.checkpoint.exists():
            return False
        with self._world.looking():
            self._aside = self._take_away()
        self.has_lost = True
        self._world.witness.told.clear()
        self._put(self._world.checkpoint, self._backup.read_bytes())
        return True

    def _move(self, _item: Item) -> bool:
        """Go on at another machine, with the checkpoint and without the state folder."""
        world = self._world
        if not world.checkpoint.exists() or self._aside:
            return False
        with world.looking():
            held = self._take_away()
        world.host = world.new_host()
        target = world.host.state / "sim.db"
        for path, content in held.items():
            self._put(target.with_name(target.name + path.name.removeprefix(world.checkpoint.name)), content)
        world.checkpoint = target
        world.is_shared = False
        self.must_take_over = True
        return True

    def _move_fresh(self, _item: Item) -> bool:
        """Go on at another machine from the manifest alone, while the service still remembers it all."""
        world = self._world
        if not self._may_forget():
            return False
        world.host = world.new_host()
        world.checkpoint = world.host.state / "sim.db"
        self._forget()
        return True

    def _move_stale(self, _item: Item) -> bool:
        world = self._world
        if self._backup is None or not self._may_forget():
            return False
        world.host = world.new_host()
        world.checkpoint = world.host.state / "sim.db"
        self._put(world.checkpoint, self._backup.read_bytes())
        self.must_take_over = world.is_stale = True
        self._forget()
        return True

    def _may_forget(self) -> bool:
        """Whether tokens still stand for all that was sent: nothing cut anew, nothing forgotten."""
        world = self._world
        is_fixed = not (world.is_recut or world.vanished or self._aside or world.has_turned_back)
        return is_fixed and world.service_window_s > 36_000 and world.true_s() - 1_800_000_000.0 < 20_000

    def _forget(self) -> None:
        self._world.is_shared = False
        self._world.is_amnesiac = True
        self.has_lost = True
        self._world.witness.told.clear()

    def _limits(self, item: Item) -> None:
        rng = random.Random(item.value)
        self._extra = {
            "rate_per_s": rng.choice((2.0, 10.0, 100.0)),
            "burst": rng.choice((1, 10)),
            "max_in_flight": rng.choice((1, 8, 64)),
        }

    def _limit(self, item: Item) -> bool:
        if self._world.is_stale:
            return False
        self._extra["limit"] = int(item.value)
        self._world.is_recut = True
        return True

    def _resume(self, _item: Item) -> bool:
        """Resume without the manifest; a checkpoint that knows an older manifest is run with the new one."""
        if not self._world.checkpoint.exists() or self._world.is_amnesiac:
            return False
        self.verb = "resume"
        return True

    def _power(self, item: Item) -> bool:
        if self._world.is_shared:
            return False
        self._world.count("power", "lost between")
        self._world.disk.power_loss(random.Random(item.value), under=self._world.host.state)
        return True

    # While one runs

    def moment(self, item: Item, process: Process) -> None:
        world = self._world
        if process.is_over or world.current is not process:
            return
        if getattr(self, f"_at_{item.what}")(item, process) is not False:
            world.count("moment", item.what)
            world.log(f"moment: {item.what} {item.value:g}")

    def _at_drain(self, _item: Item, process: Process) -> bool:
        if process.dispatcher is None:
            return False
        process.dispatcher.drain(exit_code=130)
        return True

    def _at_stop(self, item: Item, process: Process) -> None:
        self._world.loop.freeze(process)
        self._world.later(item.value, lambda: self._world.loop.thaw(process))

    def _at_stall(self, item: Item, _process: Process) -> None:
        self._world.loop.virtual_s += item.value

    def _at_sleep(self, item: Item, _process: Process) -> None:
        self._world.arrive()  # what is on its way does not sleep
        self._world.slept_s += item.value

    _at_sleep_io = _at_sleep

    def _at_jump(self, item: Item, process: Process) -> None:
        process.host.skew_s += item.value
        self._world.has_turned_back |= item.value < 0

    def _at_second(self, _item: Item, process: Process) -> bool:
        """Start it again beside itself: it must be refused."""
        if process.reader is None:
            return False
        second = self._world.start(process.host, self.limits(), beside=True)

        def judge(_done: Any) -> None:
            is_refused = second.is_killed or isinstance(second.error, DispatcherError)
            if not is_refused and not process.is_over:
                self._world.witness.breaks(1, f"a second runner was let in: {second.error!r}")

        assert second.ended is not None
        second.ended.add_done_callback(judge)
        return True

    def _at_takeover(self, item: Item, process: Process) -> bool:
        """Another machine takes over, over a file system whose locks are not shared; the old one wakes."""
        world = self._world
        if process.reader is None or world.is_amnesiac:
            return False
        world.loop.freeze(process)
        world.later(item.value, lambda: world.loop.thaw(process))
        with world.looking():
            world.checkpoint.with_name(f"{world.checkpoint.name}.lock").unlink(missing_ok=True)
        world.host = world.new_host()
        process.is_beside = world.is_shared = True
        self.verb, self.must_take_over = "run", True
        successor = world.start(world.host, self.limits(), beside=True)

        def overtaken() -> None:
            process.overtaken_s = world.true_s()

        successor.on_prepared = overtaken
        return True

    def _at_backup(self, _item: Item, process: Process) -> bool:
        if process.reader is None:
            return False
        world = self._world
        target = world.folder / f"backup-{len(world.lines)}.db"
        with world.looking():
            token = PROCESS.set(None)
            try:
                back_up(world.checkpoint, target)
            except DispatcherError as error:
                world.log(f"no backup: {error.one_line()}")
                return False
            finally:
                PROCESS.reset(token)
        self._backup = target
        return True
