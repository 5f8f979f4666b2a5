"""Loggers of training: each epoch's values to TensorBoard or Weights & Biases. What a logger does never fails a run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import Any, Protocol

from bench.plan.spec import RunSpec

Rows = Sequence[Mapping[str, Any]]  # those of history.csv so far, one an epoch


class Logger(Protocol):
    """What writes values somewhere."""

    def write(self, epoch: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in the run's folder `tensorboard/`: `tensorboard --logdir results/<sweep>`."""

    def __init__(self, spec: RunSpec, run_dir: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # A run that continues writes all its epochs again; what an earlier process wrote is hidden.
        self.writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=0)  # type: ignore[no-untyped-call]

    def write(self, epoch: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, epoch)  # type: ignore[no-untyped-call]
        self.writer.flush()  # type: ignore[no-untyped-call]

    def close(self) -> None:
        self.writer.close()  # type: ignore[no-untyped-call]


class WeightsAndBiases:
    """A run in the run's folder `wandb/`, uploaded only where WANDB_MODE says online; else `wandb sync` can do so."""

    def __init__(self, spec: RunSpec, run_dir: Path) -> None:
        import wandb

        settings = spec.to_dict()
        for key in ("root", "annotations", "file", "exclude"):  # paths of this machine
            settings["dataset"].pop(key, None)
        self.run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or spec.sweep,
            id=run_dir.name,
            name=run_dir.name,
            group=spec.method.name,
            dir=str(run_dir),
            config=settings,
            mode=os.environ.get("WANDB_MODE") or "offline",
            resume="allow",
        )

    def write(self, epoch: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=epoch)

    def close(self) -> None:
        self.run.finish()


LOGGERS: dict[str, Callable[[RunSpec, Path], Logger]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


class Log:
    """Hands each epoch to the loggers once. A logger that raises is named on stderr and left alone from then on."""

    def __init__(self, spec: RunSpec, run_dir: Path) -> None:
        self.loggers: dict[str, Logger] = {}
        self.written = 0
        for name in spec.core.loggers:
            with self._guarded(name):
                self.loggers[name] = LOGGERS[name](spec, run_dir)

    def __call__(self, rows: Rows) -> None:
        """Write the rows that are new."""
        for row in rows[self.written :]:
            values = {
                key: float(value)
                for key, value in row.items()
                if key != "epoch" and isinstance(value, Real) and not isinstance(value, bool)
            }
            for name, logger in list(self.loggers.items()):
                with self._guarded(name):
                    logger.write(int(row["epoch"]), values)
        self.written = len(rows)

    def close(self) -> None:
        """Close the loggers."""
        for name, logger in list(self.loggers.items()):
            with self._guarded(name):
                logger.close()

    @contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        try:
            yield
        except (Exception, SystemExit) as error:
            self.loggers.pop(name, None)
            reason = " ".join(str(error).split())[:300]
            words = f"the logger {name} stopped ({type(error).__name__}: {reason}); the run goes on"
            print(f"warning: {words}", file=sys.stderr)
