"""What `amp verify` says: findings, each of which names blocks or ids, and a report of one stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from amp.errors import VerifyError
from amp.streaming.ledger import IdRun, StreamKey
from amp.streaming.types import BlockRange

__all__ = ['Finding', 'Report', 'shown']

_MOST_SHOWN = 6


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is off.

    `kind`: gap, overlap, chain (hashes that do not link), ids (of units), orphans (rows that no unit names), outside
    (rows of blocks that are not recorded), batch (rows with the id of another microbatch), table (it is gone), column
    (one that the server has and the table has not), rows (lost, not of the server, or there more often than there).
    """

    kind: str
    text: str
    ranges: tuple[BlockRange, ...] = ()
    runs: tuple[IdRun, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            'kind': self.kind,
            'text': self.text,
            'ranges': [r.to_dict() for r in self.ranges],
            'ids': [list(run) for run in self.runs],
            **self.counts,
        }


@dataclass(slots=True)
class Report:
    """One stream, verified. `rows` are those of its ids; `compared` the blocks that were held against the server."""

    key: StreamKey
    history: tuple[BlockRange, ...] = ()
    rows: int = 0
    compared: tuple[BlockRange, ...] = ()
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True when nothing is off."""
        return not self.findings

    def raise_if_off(self) -> None:
        """Raises VerifyError (exit code 6) that tells the first finding, and how many there are."""
        if self.findings:
            more = len(self.findings) - 1
            raise VerifyError(
                f'{self.key.table}: {self.findings[0].text}' + (f' (and {more} more)' if more else ''),
                findings=[f.to_dict() for f in self.findings],
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            'table': self.key.table,
            'stream': self.key.name,
            'ok': self.ok,
            'rows': self.rows,
            'history': [r.to_dict() for r in self.history],
            'compared': [r.to_dict() for r in self.compared],
            'findings': len(self.findings),
            'notes': self.notes,
        }


def shown(items: Sequence[object]) -> str:
    """Ranges or id runs in a sentence; the first few of many."""
    texts = [_run(item) if isinstance(item, IdRun) else str(item) for item in items[:_MOST_SHOWN]]
    more = len(items) - _MOST_SHOWN
    return ', '.join(texts) + (f' and {more:,} more' if more > 0 else '')


def _run(run: IdRun) -> str:
    return str(run.first) if run.first == run.last else f'{run.first}-{run.last}'
