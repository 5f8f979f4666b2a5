"""The cluster's limits on a job: its time limit, and the size of an array. No torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

from bench.launch.slurm import queue

MAX_ARRAY_SIZE = 1001  # Slurm's default, for when scontrol does not answer
WHERE = ("partition", "account", "qos")
ASSOCIATION = "DefaultAccount,Account,Partition,MaxWall,QOS,DefaultQOS"


@dataclass(frozen=True)
class TimeLimit:
    """The longest time that a job may ask for, and who sets it, in words."""

    minutes: float
    owner: str = ""


@dataclass(frozen=True)
class Limits:
    """What the cluster allows, as far as it says; `time` is None if it doesn't."""

    array_size: int
    time: TimeLimit | None

    @classmethod
    def ask(cls, request: Mapping[str, Any]) -> Limits:
        """Ask Slurm for the limits of jobs with this request: partition, account and qos by the names of sbatch.

        Variables such as SBATCH_PARTITION go before the request, as they do in sbatch.
        """
        settings = _answer("scontrol", "show", "config")
        size = re.search(r"MaxArraySize\s*=\s*(\d+)", settings)
        enforced = re.search(r"AccountingStorageEnforce\s*=.*\b(limits|safe)\b", settings)
        names = {key: os.environ.get(f"SBATCH_{key.upper()}") or request.get(key) for key in WHERE}
        found = [_of_partition(names["partition"])]
        if enforced:
            found.append(_of_account(names))
        known = [each for each in found if each]
        time = min(known, key=lambda each: each.minutes) if found[0] else None
        return cls(max(1, int(size[1])) if size else MAX_ARRAY_SIZE, time)


def _of_partition(names: str | None) -> TimeLimit | None:
    """The largest limit of these partitions (separated by commas), by default of the default one; None if unknown."""
    wanted = names.split(",") if names else None
    found = []
    for line in _answer("scontrol", "show", "partition", "-o").splitlines():
        facts = dict(word.split("=", 1) for word in line.split() if "=" in word)
        name = facts.get("PartitionName", "")
        if name in wanted if wanted else facts.get("Default") == "YES":
            found.append(TimeLimit(_minutes(facts.get("MaxTime", "")), f"partition '{name}'"))
    return max(found, key=lambda each: each.minutes, default=None)


def _of_account(names: Mapping[str, str | None]) -> TimeLimit | None:
    """The limit of the user's qos or, if that has none, of the user in the account; None without one.

    A user may have the same account on several clusters: the largest limit counts.
    """
    user = _answer("id", "-un").strip()
    rows = _table("sacctmgr", "-n", "-P", "show", "user", user, "withassoc", f"format={ASSOCIATION}")
    partitions = {"", *(names["partition"] or "").split(",")}
    own = [row for row in rows if len(row) == 6 and row[1] == (names["account"] or row[0]) and row[2] in partitions]
    if not own:
        return None
    quality = names["qos"] or own[0][5] or ("" if "," in own[0][4] else own[0][4])
    for name, wall, *_ in _table("sacctmgr", "-n", "-P", "show", "qos", "format=Name,MaxWall"):
        if name == quality and _minutes(wall) < inf:
            return TimeLimit(_minutes(wall), f"qos '{name}'")
    return TimeLimit(max(_minutes(row[3]) for row in own), f"account '{own[0][1]}'")


def _table(*command: str) -> list[list[str]]:
    return [line.split("|") for line in _answer(*command).splitlines()]


def _answer(*command: str) -> str:
    """The output of a command; empty without an answer."""
    try:
        return queue.ask(*command)
    except queue.NoAnswer:
        return ""


def _minutes(text: str) -> float:
    """Minutes of a limit such as "1-00:00:00"; infinite for UNLIMITED and for none."""
    seconds = queue.seconds_of(text)
    return inf if seconds is None else seconds / 60
