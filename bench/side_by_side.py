"""Two ways to do one work, in turns.

Each side lives in a process of its own, kept to its cores, and works while the others wait; so a figure is not the
better for the hour it was taken at, and each side's memory is its own. The first turn warms up, and is where memory is
read.
"""

import multiprocessing
import os
import platform
import re
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]
"""A line of a table, as JSON holds it."""


@dataclass(frozen=True)
class Turn:
    """One turn of a side: `before` is not timed, `work` is, and returns how many images it did."""

    work: Callable[[], int]
    before: Callable[[], object] = bool


@dataclass(frozen=True)
class Side:
    """A way to do the work. `make` is called once, in the side's process; `needs` is a package that it imports."""

    name: str
    make: Callable[..., Turn]
    delivers: str
    needs: str | None = None


@dataclass(frozen=True)
class Pair:
    """Both sides in one precision and memory format, where by default they differ; a column of the table."""

    column: str
    ours: Side
    peer: Side


@dataclass(frozen=True)
class Work:
    """What is done, by us and by others, each with its defaults.

    Attributes:
        at_least: the ratio (ours/peer) wanted of each peer.
        equal: the same by both in equal precision; then there is one peer.
        floor: what the work takes at least, as a side.
        share: of the floor's images/s, wanted of ours.
    """

    name: str
    title: str
    ours: Side
    peers: tuple[Side, ...]
    at_least: float | None = None
    cores: int = 2
    equal: tuple[Pair, ...] = ()
    floor: Side | None = None
    share: float = 0.0


@dataclass
class _Child:
    """A side at work in its process."""

    side: Side
    cores: int
    seconds: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    memory_mb: float = 0.0

    def __enter__(self) -> "_Child":
        # Forked from a server that has imported PyTorch but started none of its threads.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["bench.data", "bench.steps", "lightly.loss", "lightly.transforms"])
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(self.side, self.cores, other))
        self.process.start()
        other.close()
        return self

    def __exit__(self, *_: object) -> None:
        self.pipe.close()
        self.process.join(10)
        if self.process.is_alive():
            self.process.terminate()

    def warm_up(self) -> None:
        """Builds the side and takes a turn, watching the memory of all processes, of which it alone works."""
        self._answer()
        before = peak = _memory_mb()
        self.pipe.send("go")
        pause = 0.05
        while not self.pipe.poll(pause):
            start = time.perf_counter()
            peak = max(peak, _memory_mb())
            pause = 2 * (time.perf_counter() - start)  # it takes its time, which is not to slow the side down
        self._answer()
        self.memory_mb = max(peak, _memory_mb()) - before

    def turn(self) -> None:
        self.pipe.send("go")
        images, seconds = self._answer()
        self.seconds.append(seconds)
        self.rates.append(images / seconds)

    def _answer(self) -> Any:
        try:
            answer = self.pipe.recv()
        except EOFError:
            raise RuntimeError(f"{self.side.name}: its process ended") from None
        if isinstance(answer, Exception):
            raise answer
        return answer


def _serve(side: Side, cores: int, pipe: Connection) -> None:
    """A side's process: it reports that it is ready, then runs a turn at each request."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    torch.set_num_threads(cores)
    multiprocessing.set_start_method("fork", force=True)  # Linux's own, not the one that this process came by
    pipe.send("ready")
    turn = None
    try:
        while pipe.recv():
            turn = turn or side.make()
            turn.before()
            start = time.perf_counter()
            images = turn.work()
            pipe.send((images, time.perf_counter() - start))
    except (EOFError, ConnectionError):
        return
    except Exception as error:
        last = str(error).strip().rpartition("\n")[2]
        pipe.send(RuntimeError(f"{side.name}: {type(error).__name__}: {last}"))


def _memory_mb() -> float:
    """The memory of this process and all below it, without mapped files; what processes share is counted once."""
    total, todo = 0, [os.getpid()]
    while todo:
        path = Path(f"/proc/{todo.pop()}")
        try:
            rollup = (path / "smaps_rollup").read_text()
            children = [(task / "children").read_text() for task in (path / "task").iterdir()]
        except OSError:  # it has just ended
            continue
        total += sum(map(int, re.findall(r"^Pss_(?:Anon|Shmem):\s+(\d+)", rollup, re.M)))
        todo += [int(child) for line in children for child in line.split()]
    return total / 1024


def measure(work: Work, repeats: int, log: Callable[[str], None]) -> list[Row]:
    """A row for each peer: medians of the turns, their ratio, and the least and greatest ratio of two turns in a row.

    Where a side cannot work, or its package is not installed, the rows give the reason instead.
    """
    missing = [peer for peer in work.peers if peer.needs and find_spec(peer.needs) is None]
    peers = [peer for peer in work.peers if peer not in missing]
    rows = [_not_measured(work, peer, f"{peer.needs} is not installed", log) for peer in missing]
    return rows + (_measure(work, peers, repeats, log) if peers else [])


def _measure(work: Work, peers: list[Side], repeats: int, log: Callable[[str], None]) -> list[Row]:
    equal = [side for pair in work.equal for side in (pair.ours, pair.peer)]
    floor = [] if work.floor is None else [work.floor]
    try:
        with ExitStack() as stack:
            children = [stack.enter_context(_Child(side, work.cores)) for side in (work.ours, *peers, *equal, *floor)]
            for child in children:
                log(f"{work.title}: {child.side.name} warms up")
                child.warm_up()
            for repeat in range(repeats):
                for child in children:
                    child.turn()
                rates = ", ".join(f"{child.side.name} {child.rates[-1]:,.0f}" for child in children)
                log(f"{work.title}: {repeat + 1}/{repeats}: {rates} images/s")
    except (RuntimeError, OSError) as error:
        return [_not_measured(work, peer, str(error), log) for peer in peers]
    ours, *others = children
    least = {"floor": _share(work, ours, others.pop())} if floor else {}
    at_equal, others = others[len(peers) :], others[: len(peers)]
    pairs = zip(work.equal, at_equal[::2], at_equal[1::2], strict=True)
    columns = {pair.column: _compared(mine, theirs) for pair, mine, theirs in pairs}
    return [_row(work, ours, peer) | least | {"equal": columns} for peer in others]


def _not_measured(work: Work, peer: Side, why: str, log: Callable[[str], None]) -> Row:
    log(f"{work.title}: {peer.name} is not measured: {why}")
    return {"name": work.name, "work": work.title, "against": peer.name, "not_measured": why}


def _compared(ours: _Child, peer: _Child) -> Row:
    mine, theirs = statistics.median(ours.rates), statistics.median(peer.rates)
    ratios = [a / b for a, b in zip(ours.rates, peer.rates, strict=True)]
    return {
        "images_per_second": {"ours": mine, "peer": theirs},
        "ratio": mine / theirs,
        "ratio_range": [min(ratios), max(ratios)],
    }


def _share(work: Work, ours: _Child, floor: _Child) -> Row:
    compared = _compared(ours, floor)
    return {
        "images_per_second": compared["images_per_second"]["peer"],
        "share": compared["ratio"],
        "range": compared["ratio_range"],
        "at_least": work.share,
        "met": compared["ratio"] >= work.share,
    }


def _row(work: Work, ours: _Child, peer: _Child) -> Row:
    compared = _compared(ours, peer)
    return {
        "name": work.name,
        "work": work.title,
        "against": peer.side.name,
        "cores": work.cores,
        **compared,
        "at_least": work.at_least,
        "met": None if work.at_least is None else compared["ratio"] >= work.at_least,
        "memory_mb": {"ours": ours.memory_mb, "peer": peer.memory_mb},
        "seconds": {"ours": ours.seconds, "peer": peer.seconds},
        "delivers": {"ours": ours.side.delivers, "peer": peer.side.delivers},
    }


def markdown(rows: list[Row]) -> list[str]:
    """The rows as lines of a table; columns that no row fills are left out."""
    with_target = any(row.get("at_least") for row in rows)
    equal = list(dict.fromkeys(column for row in rows for column in row.get("equal", {})))
    target = ["at least"] if with_target else []
    floor = ["of the floor"] if any("floor" in row for row in rows) else []
    columns = [*target, *(f"both {column}" for column in equal), *floor]
    head = ["work", "against", "ours", "theirs", "ratio", *columns, "memory"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        cells = [row["work"], row["against"]]
        if "not_measured" in row:
            cells += [f"not measured: {row['not_measured']}".replace("|", "/")] + [""] * (len(head) - 3)
        else:
            ours, theirs = row["images_per_second"].values()
            cells += [f"{ours:,.0f}", f"{theirs:,.0f}", _ratio(row)]
            if with_target:
                cells.append(f"{row['at_least']:g}: {'met' if row['met'] else 'missed'}" if row["at_least"] else "")
            cells += [_ratio(row["equal"][column]) if column in row["equal"] else "" for column in equal]
            if floor:
                cells.append(_share_in_words(row["floor"]) if "floor" in row else "")
            cells.append(" / ".join(f"{memory:,.0f} MB" for memory in row["memory_mb"].values()))
        lines.append(cells)
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _ratio(compared: Row) -> str:
    low, high = compared["ratio_range"]
    return f"**{compared['ratio']:.1f}** ({low:.1f} to {high:.1f})"


def _share_in_words(floor: Row) -> str:
    low, high = floor["range"]
    met = "met" if floor["met"] else "missed"
    return f"**{floor['share']:.0%}** ({low:.0%} to {high:.0%}); {floor['at_least']:.0%} wanted: {met}"


def delivered(rows: list[Row]) -> list[str]:
    """What the sides deliver, as lines of a table."""
    lines = ["| work | ours delivers | theirs deliver |", "| --- | --- | --- |"]
    for row in rows:
        if "delivers" in row:
            lines.append(f"| {row['work']}, {row['against']} | {' | '.join(row['delivers'].values())} |")
    return lines


def context(command: str) -> Row:
    """The machine, the versions, the day."""
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text()
    except OSError:
        cpuinfo = ""
    model = re.search(r"^model name\s*:\s*(.*)", cpuinfo, re.M)
    flags = set(cpuinfo.split())
    return {
        "cpu": model[1] if model else platform.processor() or platform.machine(),
        "avx512_bf16": "avx512_bf16" in flags,
        "amx_bf16": "amx_bf16" in flags,
        "cores": len(os.sched_getaffinity(0)),
        **{name: _version(name) for name in ("torch", "torchvision", "lightly", "pillow")},
        "date": str(date.today()),
        "command": command,
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def in_words(where: Row) -> str:
    """The context in a sentence."""
    names = ", ".join(f"{name} {where[name]}" for name in ("torch", "torchvision", "lightly", "pillow") if where[name])
    return f"`{where['command']}`: {machine_in_words(where)}, {names}, {where['date']}; {where['images']}."


def machine_in_words(where: Row) -> str:
    """2 cores of a processor, and whether it multiplies bf16."""
    has = ", ".join(name for name in ("avx512_bf16", "amx_bf16") if where[name]) or "no native bf16"
    return f"{where['cores']} core{'s' * (where['cores'] != 1)} of {where['cpu']} ({has})"
