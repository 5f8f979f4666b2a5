"""Measuring two ways to do the same work side by side, and what this machine could do at best."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from bench.core import cost

CPU = torch.device("cpu")
clock: Callable[[], float] = time.perf_counter  # or time.process_time, on a machine that others use as well


@dataclass
class Timing:
    """The seconds of each round, and the highest working memory of a round in bytes (None where it is unknown)."""

    seconds: list[float] = field(default_factory=list)
    peak_bytes: int | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def note_peak(self, peak_bytes: int | None) -> None:
        if peak_bytes is not None:
            self.peak_bytes = max(self.peak_bytes or 0, peak_bytes)


@dataclass(frozen=True)
class Row:
    """One measurement, of this project's way (`ours`) alone or beside a baseline.

    target: the ratio that is to be reached, or the seconds that are not to be exceeded where there is no baseline.
    limit_seconds: what the same work takes at the machine's measured rates; None where nothing bounds it so simply.
    """

    what: str
    ours: Timing
    baseline: str | None = None
    theirs: Timing | None = None
    target: float | None = None
    limit_seconds: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """Baseline's time over ours: the median over rounds, each of which ran both within one minute's load."""
        if self.theirs is None:
            return None
        return statistics.median(b / a for a, b in zip(self.ours.seconds, self.theirs.seconds, strict=True))

    def as_data(self) -> dict[str, Any]:
        """Plain data for --json."""
        found = self.ours.median
        reached = None if self.target is None else (self.ratio >= self.target if self.ratio else found <= self.target)
        share = self.limit_seconds / found if self.limit_seconds else None
        derived = {"median_seconds": found, "ratio": self.ratio, "reached": reached, "share_of_limit": share}
        return asdict(self) | derived


def working_memory(before: int | None = None) -> int | None:
    """Resident bytes of this process; with `before` its peak since `start_memory`, beyond `before`."""
    if before is None:
        with suppress(OSError, ValueError, IndexError):
            return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return None
    peak = cost.peak_memory(CPU)
    return None if peak is None else max(0, peak - before)


def start_memory() -> int | None:
    """Give freed memory back to the system, start a new peak, and return the resident bytes."""
    gc.collect()
    with suppress(OSError, AttributeError):  # glibc alone
        ctypes.CDLL(None).malloc_trim(0)
    cost.reset_peak_memory(CPU)
    return working_memory()


def timed(work: Callable[[], Any], into: Timing, *, keep: bool = True) -> Any:
    """Call `work`, add its seconds and working memory to `into` unless it warms up only, and return its result."""
    before = start_memory()
    started = clock()
    result = work()
    seconds = clock() - started
    if keep:
        into.seconds.append(seconds)
        into.note_peak(working_memory(before) if before is not None else None)
    return result


def alternate(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int) -> tuple[Timing, Timing]:
    """Both, one after the other, once to warm up and then `rounds` times, so that other load slows both."""
    timings = Timing(), Timing()
    for number in range(rounds + 1):
        for work, timing in zip((ours, theirs), timings, strict=True):
            timed(work, timing, keep=number > 0)
    return timings


def check_equal(what: str, ours: Sequence[float], theirs: Sequence[float], tolerance: float = 1e-5) -> None:
    """AssertionError unless both computed the same: a ratio of two different computations means nothing."""
    apart = max((abs(a - b) / max(1.0, abs(b)) for a, b in zip(ours, theirs, strict=True)), default=0.0)
    assert apart <= tolerance, f"{what}: the results are {apart:.1e} apart, more than {tolerance:.0e}"


# --- the machine ------------------------------------------------------------------------------------------------------


def matmul_rate(size: int = 2048, dtype: torch.dtype = torch.float32, device: torch.device = CPU) -> float:
    """Floating-point operations a second of a square matrix product, the best of five."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / _best(lambda: a @ b, device)


def copy_rate(bytes_: int = 2**28) -> float:
    """Bytes a second that a copy in memory reads and writes, the best of five."""
    source = torch.ones(bytes_ // 8, dtype=torch.float64)
    target = torch.empty_like(source)
    return 2 * bytes_ / _best(lambda: target.copy_(source), CPU)


def _best(work: Callable[[], Any], device: torch.device) -> float:
    seconds = []
    for _ in range(6):
        started = clock()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(clock() - started)
    return min(seconds[1:])


def machine(device: torch.device = CPU) -> dict[str, Any]:
    """What the measurements ran on, with its measured rates."""
    facts = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cost.device_facts(CPU)["device"],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "matmul_gflops": round(matmul_rate() / 1e9),
        "copy_gb_per_s": round(copy_rate() / 1e9, 1),
    }
    if device.type == "cuda":
        rate = matmul_rate(8192, torch.bfloat16, device)
        facts |= {"gpu": torch.cuda.get_device_name(device), "gpu_bf16_matmul_tflops": round(rate / 1e12)}
    return facts


# --- text -------------------------------------------------------------------------------------------------------------

HEADER = ("work", "beside", "ours s", "theirs s", "ratio", "target", "ours MB", "theirs MB", "of limit")


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table, with their other facts below."""
    lines = [HEADER, tuple("---" for _ in HEADER)]
    lines += [_cells(row) for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    text += [f"{row.what}: {_facts(row.facts)}" for row in rows if row.facts]
    return "\n".join(text)


def _cells(row: Row) -> tuple[str, ...]:
    theirs, sign = row.theirs, "" if row.theirs else " s"
    return (
        row.what,
        row.baseline or "-",
        f"{row.ours.median:.4g}",
        f"{theirs.median:.4g}" if theirs else "-",
        f"{row.ratio:.2f}" if row.ratio else "-",
        f"{row.target:g}{sign}" if row.target else "-",
        _megabytes(row.ours),
        _megabytes(theirs) if theirs else "-",
        f"{100 * row.limit_seconds / row.ours.median:.0f}%" if row.limit_seconds else "-",
    )


def _megabytes(timing: Timing) -> str:
    return "-" if timing.peak_bytes is None else f"{timing.peak_bytes / 1e6:.0f}"


def _facts(facts: dict[str, Any]) -> str:
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in facts.items()
    )
