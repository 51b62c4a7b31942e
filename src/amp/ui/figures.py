"""Figures of a running amp: what its `--metrics` answers, read as a person's browser cannot."""

from __future__ import annotations

import urllib.request
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

__all__ = ['Figures', 'read_figures']

_SECONDS = 5.0
_KEPT = {
    'amp_rows_total': 'rows',
    'amp_commits_total': 'commits',
    'amp_commit_seconds_sum': 'commit_seconds',
    'amp_reorgs_total': 'reorgs',
    'amp_rows_undone_total': 'rows_undone',
    'amp_blocks_undone_total': 'blocks_undone',
    'amp_retries_total': 'retries',
}


@dataclass
class Figures:
    """Counters since each process began, by (figure, table, stream), and the blocks that partitions are at."""

    totals: dict[tuple[str, str, str], float] = field(default_factory=dict)
    partitions: dict[tuple[str, str, str, str], dict[str, int]] = field(default_factory=dict)

    def plus(self, other: Figures) -> Figures:
        """Those of two processes together."""
        totals = dict(self.totals)
        for key, value in other.totals.items():
            totals[key] = totals.get(key, 0.0) + value
        return Figures(totals, {**self.partitions, **other.partitions})

    def total(self, figure: str, table: str, stream: str) -> float | None:
        """One counter of one stream; None when no process tells of it."""
        return self.totals.get((figure, table, stream))

    def running(self, table: str, stream: str, network: str) -> list[list[int]]:
        """First and last block of every partition that a worker has in hand."""
        return sorted(
            [edges['first'], edges['last']]
            for (t, s, n, _), edges in self.partitions.items()
            if (t, s, n) == (table, stream, network) and {'first', 'last'} <= edges.keys()
        )

    def to_dict(self) -> dict[str, Any]:
        """One total for each figure."""
        found = dict.fromkeys(_KEPT.values(), 0.0)
        for (figure, _, _), value in self.totals.items():
            found[figure] += value
        return found


def read_figures(address: str) -> Figures:
    """What `HOST:PORT` answers. Raises OSError when it does not, ValueError when it is something else."""
    host, _, port = address.rpartition(':')
    with urllib.request.urlopen(f'http://{host or "127.0.0.1"}:{int(port)}/metrics', timeout=_SECONDS) as answer:
        text = answer.read().decode()
    found = Figures()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = sample.labels
            table, stream = labels.get('table', ''), labels.get('stream', labels.get('what', ''))
            if sample.name in _KEPT:
                key = (_KEPT[sample.name], table, stream)
                found.totals[key] = found.totals.get(key, 0.0) + sample.value
            elif sample.name == 'amp_partition_block':
                slot = (table, stream, labels['network'], labels['slot'])
                found.partitions.setdefault(slot, {})[labels['edge']] = int(sample.value)
    return found
