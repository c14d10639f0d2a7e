"""What a command did to data files."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class CleaningReport:
    """Counts of one command.

    Attributes:
        read: rows read, bad ones included.
        written: rows written, by file.
        rejected: what was left out, by reason: rows, and candidates where the reason says so.
        rejected_file: where these are, None if there are none.
        changed: rows that lost candidates or gained some, and were written.
        details: what is particular to the command.
    """

    read: int
    written: dict[str, int]
    rejected: dict[str, int] = field(default_factory=dict)
    rejected_file: Path | None = None
    changed: int = 0
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Rows written in all."""
        return sum(self.written.values())

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"rejected_file": self.rejected_file and str(self.rejected_file)}
