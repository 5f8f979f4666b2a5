"""The table of `make test-gpu`: a row a check, printed at the end and, from a real card, kept in docs/gpu.md."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

DOC = Path(__file__).parents[2] / "docs" / "gpu.md"
MARK = "<!-- below this line: the last run of `make test-gpu`, written by it -->"
COLUMNS = ("check", "cases", "largest difference", "tolerance", "result", "seconds")


@dataclass
class Check:
    """One test function with its cases. difference, tolerance: the largest ones noted, where it compares numbers."""

    name: str
    passed: int = 0
    failed: int = 0
    excused: int = 0
    skipped: int = 0
    difference: float | None = None
    tolerance: float | None = None
    seconds: float = 0.0

    def add(self, report: pytest.TestReport) -> None:
        """Count a report of one phase of a case: its call, or a setup or teardown that did not pass."""
        self.seconds += report.duration
        if report.when != "call" and report.passed:
            return
        if hasattr(report, "wasxfail"):
            self.excused += 1
        else:
            setattr(self, report.outcome, getattr(self, report.outcome) + 1)
        for key, value in report.user_properties:
            if key in ("difference", "tolerance"):
                known = getattr(self, key)
                setattr(self, key, value if known is None else max(known, value))

    @property
    def result(self) -> str:
        """`passed`, or how many cases did what."""
        counts = {each: getattr(self, each) for each in ("failed", "passed", "excused", "skipped")}
        found = [(each, count) for each, count in counts.items() if count]
        return found[0][0] if len(found) == 1 else ", ".join(f"{count} {each}" for each, count in found)

    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of `COLUMNS`."""
        numbers = ["–" if each is None else f"{each:.1e}" for each in (self.difference, self.tolerance)]
        cases = self.passed + self.failed + self.excused + self.skipped
        return self.name, str(cases), *numbers, self.result, f"{self.seconds:.1f}"


@dataclass
class Table:
    """All checks of a session, in the order in which they ran."""

    checks: dict[str, Check] = field(default_factory=dict)

    def add(self, report: pytest.TestReport) -> None:
        """Count a report under the name of its test function."""
        name = report.nodeid.rpartition("::")[2].partition("[")[0].removeprefix("test_").replace("_", " ")
        self.checks.setdefault(name, Check(name)).add(report)

    def markdown(self) -> str:
        """The table, with columns of equal width."""
        rows = [COLUMNS, *(check.cells() for check in self.checks.values())]
        widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
        lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        lines.insert(1, " | ".join("-" * width for width in widths))
        return "\n".join(f"| {line} |" for line in lines)


def write(table: Table, *, card: str, torch: str, date: str, commit: str, doc: Path = DOC) -> None:
    """Put the table into the page, in place of the last one."""
    before = doc.read_text(encoding="utf-8").partition(MARK)[0]
    facts = f"{card}, torch {torch}, {date}, commit {commit}."
    doc.write_text(f"{before}{MARK}\n\n{facts}\n\n{table.markdown()}\n", encoding="utf-8")
