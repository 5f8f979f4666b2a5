"""A throw-away Slurm cluster on this machine, for tests: real daemons, several nodes, pretended GPUs.

Configuration, keys, database, spool and logs lie in one folder, the ports are private, and nothing in /etc, /run or
/var is read or written. Every daemon is a child of this process: it is ended through its handle, and the kernel ends
it if this process dies first. Jobs are ended by Slurm. Needs root and the packages of `PROGRAMS`.

    with Cluster(folder, max_array=20) as cluster: cluster.run("sbatch", ...)
"""

from __future__ import annotations

import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

PROGRAMS = ("munged", "slurmctld", "slurmd", "slurmdbd", "sbatch", "srun", "mariadbd", "mariadb-install-db", "setpriv")
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
REQUIRE = "PETL_BENCH_REQUIRE_SLURM"
SECONDS = 40  # patience with a daemon or a command


def missing() -> str | None:
    """Why no cluster can be started here; None if one can."""
    if os.geteuid() != 0:
        return "a Slurm test cluster needs root"
    absent = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    return f"a Slurm test cluster needs {', '.join(absent)}" if absent else None


def until(condition: Callable[[], object], what: str, seconds: float = SECONDS, every: float = 0.1) -> None:
    """Wait for the condition; AssertionError that names `what` if it does not come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain for {what}"
        time.sleep(every)


@dataclass
class Cluster:
    """`nodes` slurmd with `cpus`, `memory_mb` and `gpus` each, whatever the machine really has.

    Partitions: `debug` (the default) and `high`, whose jobs preempt those of `debug`, by requeueing them.
    """

    folder: Path
    nodes: int = 2
    cpus: int = 8
    memory_mb: int = 32000
    gpus: int = 4
    max_array: int = 1001
    accounting: bool = True
    warns: bool = True  # whether preempted jobs get the signal they asked for; else SIGTERM
    grace_seconds: int = 20  # between that and their end
    _daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict, init=False)
    _ports: dict[str, int] = field(default_factory=dict, init=False)

    # --- for tests ---

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs in its environment to talk to this cluster and no other."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def run(self, *command: str, check: bool = True, seconds: float = SECONDS) -> str:
        """A Slurm command's output; AssertionError with its words if it fails."""
        environment = {**os.environ, **self.environment, "PATH": PATH}
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=seconds, check=False, cwd=self.folder
        )
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"
        return done.stdout

    def queue(self, form: str = "%i %t") -> list[list[str]]:
        """squeue's lines for the jobs and array elements that wait, run or end just now, split into words."""
        return [line.split() for line in self.run("squeue", "-h", "-r", "-o", form).splitlines()]

    def wait_until_empty(self, seconds: float = SECONDS) -> None:
        """Wait until no job waits or runs."""
        until(lambda: not self.queue(), "an empty queue", seconds, 0.3)

    def kill(self, name: str) -> None:
        """`kill -9` one daemon: slurmctld, slurmdbd, slurmd-n1, ..."""
        self._daemons[name].kill()
        self._daemons.pop(name).wait()

    def lose_node(self, node: str) -> None:
        """What a machine's end looks like: its slurmd and all that jobs started are gone, without a word.

        For simplicity the jobs of all nodes are.
        """
        self.kill(f"slurmd-{node}")
        self._kill_jobs()
        self.run("scontrol", "update", f"nodename={node}", "state=down", "reason=lost")

    def restore_node(self, node: str) -> None:
        """The lost node is back."""
        self._spawn(f"slurmd-{node}", "slurmd", "-D", "-N", node)
        self.run("scontrol", "update", f"nodename={node}", "state=resume")
        until(lambda: self.run("sinfo", "-h", "-n", node, "-p", "debug", "-t", "idle,mix", "-o", "%N").strip(), node)

    def start_slurmctld(self) -> None:
        """Start the controller, which continues from the state it saved."""
        self._spawn("slurmctld", "slurmctld", "-D")
        until(lambda: "is UP" in self.run("scontrol", "ping", check=False), "slurmctld")

    def start(self) -> None:
        """Start all daemons and wait until every node is idle."""
        for name in ("log", "state", "munge", "run"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._ports = _free_ports(["ctld", "dbd", "sql", *(f"n{n + 1}" for n in range(self.nodes))])
        self._start_munge()
        self._write_settings()
        if self.accounting:
            self._start_accounting()
        self.start_slurmctld()
        for n in range(1, self.nodes + 1):
            (self.folder / f"spool-n{n}").mkdir(exist_ok=True)
            self._spawn(f"slurmd-n{n}", "slurmd", "-D", "-N", f"n{n}")
        until(
            lambda: self.run("sinfo", "-h", "-N", "-p", "debug", "-t", "idle").count("\n") == self.nodes, "idle nodes"
        )

    def stop(self) -> None:
        """Cancel all jobs, wait for their ends, and end the daemons that were started here."""
        if "slurmctld" in self._daemons:
            self.run("scancel", "--user=root", check=False)
            self.run("scancel", "--user=root", "--signal=KILL", check=False)
            until(lambda: not self.run("squeue", "-h", check=False), "the end of all jobs")
        for name in reversed(list(self._daemons)):
            daemon = self._daemons.pop(name)
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._kill_jobs()

    def __enter__(self) -> Cluster:
        with ExitStack() as stack:
            stack.callback(self.stop)
            self.start()
            stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.stop()

    # --- its parts ---

    def _kill_jobs(self) -> None:
        """Kill what the cluster's daemons started: it has this cluster's own settings in its environment."""
        spared = {daemon.pid for daemon in self._daemons.values()} | {os.getpid()}
        own = f"SLURM_CONF={self.folder / 'slurm.conf'}".encode()
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if int(process.name) not in spared and own in (process / "environ").read_bytes().split(b"\0"):
                    os.kill(int(process.name), signal.SIGKILL)

    def _spawn(self, name: str, *command: str) -> None:
        """Start a daemon in the foreground mode, as a child that dies with this process."""
        environment = {**os.environ, **self.environment, "PATH": PATH}
        with (self.folder / "log" / f"{name}.out").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    def _start_munge(self) -> None:
        folder = self.folder / "munge"
        folder.chmod(0o755)
        key = folder / "key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        options = [f"--{option}={folder / name}" for option, name in files.items()]
        self._spawn("munged", "munged", "--foreground", "--force", *options)
        until((folder / "socket").exists, "munged")

    def _start_accounting(self) -> None:
        """MariaDB, slurmdbd, and an account for root, without which the controller would take no job of root's."""
        data, socket_path = self.folder / "sql", self.folder / "run" / "sql.socket"
        own = self.folder / "sql.tmp"  # in /tmp the temporary tables of two servers may have one name
        own.mkdir(exist_ok=True)
        install = ["mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={data}", f"--tmpdir={own}"]
        self.run(*install, "--skip-test-db", "--auth-root-authentication-method=socket")
        self._spawn(
            "mariadbd",
            *("mariadbd", "--no-defaults", "--user=root", f"--datadir={data}", f"--socket={socket_path}"),
            f"--tmpdir={own}",
            *(f"--pid-file={self.folder / 'run' / 'sql.pid'}", "--bind-address=127.0.0.1"),
            *(f"--port={self._ports['sql']}", "--skip-name-resolve", "--innodb-flush-log-at-trx-commit=0"),
            *("--innodb-buffer-pool-size=128M", "--innodb-log-file-size=64M", "--innodb-lock-wait-timeout=900"),
        )
        client = ["mariadb", "--no-defaults", f"--socket={socket_path}"]
        until(lambda: self.run(*client, "-e", "select 42", check=False), "mariadbd")
        grant = "create user slurm@'127.0.0.1' identified by 'slurm'; grant all on slurm.* to slurm@'127.0.0.1'"
        self.run(*client, "-e", f"create database slurm; {grant}")
        self._spawn("slurmdbd", "slurmdbd", "-D")
        until(lambda: self.run("sacctmgr", "-n", "list", "user", check=False), "slurmdbd")
        for entity in ("cluster test", "account test cluster=test", "user root account=test cluster=test"):
            self.run("sacctmgr", "-i", "add", *entity.split())

    def _write_settings(self) -> None:
        here, ports, host = self.folder, self._ports, socket.gethostname().partition(".")[0]
        munge = f"socket={here}/munge/socket"
        accounting = "AccountingStorageType=accounting_storage/none"
        if self.accounting:
            accounting = f"""\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={ports["dbd"]}
AccountingStoragePass={here}/munge/socket
AccountingStorageTRES=gres/gpu
AccountingStorageEnforce=associations,limits,qos
AccountingStoreFlags=job_comment"""
            database = here / "slurmdbd.conf"
            database.write_text(f"""\
AuthType=auth/munge
AuthInfo={munge}
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={ports["dbd"]}
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={ports["sql"]}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm
LogFile={here}/log/slurmdbd.log
PidFile={here}/run/slurmdbd.pid
""")
            database.chmod(0o600)
        nodes = "".join(
            f"NodeName=n{n} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[f'n{n}']} CPUs={self.cpus} "
            f"RealMemory={self.memory_mb} Gres=gpu:{self.gpus} State=UNKNOWN\n"
            for n in range(1, self.nodes + 1)
        )
        devices = here / "dev"
        devices.mkdir(exist_ok=True)
        for gpu in range(self.gpus):
            (devices / f"gpu{gpu}").symlink_to("/dev/null")  # what counts is that it is a character device
        (here / "gres.conf").write_text(
            f"NodeName=n[1-{self.nodes}] Name=gpu File={devices}/gpu[0-{self.gpus - 1}]\n" if self.gpus else ""
        )
        # cred_expire is also how long a requeued job waits, 120 s by default. DefMemPerCPU: jobs share a node.
        (here / "slurm.conf").write_text(f"""\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports["ctld"]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo={munge},cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
{"SlurmctldParameters=preempt_send_user_signal" if self.warns else ""}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
StateSaveLocation={here}/state
SlurmdSpoolDir={here}/spool-%n
SlurmctldPidFile={here}/run/slurmctld.pid
SlurmdPidFile={here}/run/slurmd-%n.pid
SlurmctldLogFile={here}/log/slurmctld.log
SlurmdLogFile={here}/log/slurmd-%n.log
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
DefMemPerCPU=500
MaxArraySize={self.max_array}
MinJobAge=300
KillWait=5
SlurmdTimeout=30
MessageTimeout=20
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1
GresTypes=gpu
{accounting}
{nodes}PartitionName=debug Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={self.grace_seconds}
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF
""")


def _free_ports(names: list[str]) -> dict[str, int]:
    """A free port for each name, below those that the kernel gives to clients."""
    found: dict[str, int] = {}
    with ExitStack() as held:
        while len(found) < len(names):
            port, tried = random.randint(20000, 32000), held.enter_context(socket.socket())
            try:
                tried.bind(("127.0.0.1", port))
            except OSError:
                continue
            found[names[len(found)]] = port
    return found
