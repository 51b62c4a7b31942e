"""What the page shows: asked of destinations, server and metrics now and then, kept as plain values.

One thread looks; whoever asks for `snapshot` gets what it saw last. Nothing is written anywhere.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

from amp.client import Client
from amp.errors import AmpError, redact
from amp.loaders.status import StreamStatus, open_destination, status_of
from amp.streaming.types import BlockRange
from amp.ui.commands import commands_of
from amp.ui.figures import Figures, read_figures

__all__ = ['Watcher']

_MOST_SAMPLES = 720
_MOST_REORGS = 200
_RATE_SAMPLES = 30


class _History:
    """What is remembered of one stream and one network between two looks."""

    def __init__(self) -> None:
        self.samples: deque[tuple[float, int | None, int | None]] = deque(maxlen=_MOST_SAMPLES)
        self._window: dict[int, bytes | str | None] = {}

    def look(self, at: float, durable: int | None, head: int | None, window: Mapping[int, Any]) -> int | None:
        """Remember; the depth in blocks of a reorg since the last look, None when there was none."""
        self.samples.append((at, durable, head))
        before, self._window = self._window, dict(window)
        top = max(before, default=None)
        if top is None or not window or min(window) > top or window.get(top) == before[top]:
            return None
        common = [number for number in before if window.get(number) == before[number]]
        return top - max(common, default=min(before) - 1)

    def seconds_left(self, lag: int | None) -> float | None:
        """How long the lag lasts at the speed of the last looks; None when it is not known or does not shrink."""
        recent = [(at, durable) for at, durable, _ in list(self.samples)[-_RATE_SAMPLES:] if durable is not None]
        if not lag or lag < 0 or len(recent) < 2 or recent[-1][0] <= recent[0][0]:
            return None
        rate = (recent[-1][1] - recent[0][1]) / (recent[-1][0] - recent[0][0])
        return lag / rate if rate > 0 else None


class Watcher:
    """Looks every `interval` seconds at `destinations` (URLs or names), the server and the metrics of `addresses`."""

    def __init__(
        self,
        destinations: Sequence[str],
        source: str | None = None,
        token: str | None = None,
        addresses: Sequence[str] = (),
        interval: float = 2.0,
    ) -> None:
        self._destinations = tuple(destinations)
        self._source, self._token = source, token
        self._addresses = tuple(addresses)
        self._interval = interval
        self._histories: dict[tuple[str, str, str, str], _History] = {}
        self._reorgs: deque[dict[str, Any]] = deque(maxlen=_MOST_REORGS)
        self._figures: deque[tuple[float, Figures]] = deque(maxlen=_MOST_SAMPLES)
        self._stop = threading.Event()
        self._snapshot: dict[str, Any] = {'at': None, 'destinations': [], 'reorgs': [], 'figures': []}
        self._thread = threading.Thread(target=self._run, name='amp-ui-watcher', daemon=True)

    def start(self) -> None:
        """Look, in a thread, until `close`."""
        self._thread.start()

    def close(self) -> None:
        """Stop looking."""
        self._stop.set()
        self._thread.join(30)

    def snapshot(self) -> dict[str, Any]:
        """What was seen last, as plain values for JSON."""
        return self._snapshot

    def _run(self) -> None:
        while not self._stop.is_set():
            self.look()
            self._stop.wait(self._interval)

    def look(self) -> None:
        """Look once at everything. A place that does not answer is told as its `problem`."""
        at = time.time()
        problems = self._read_figures(at)
        with ExitStack() as stack:
            client = stack.enter_context(Client(self._source, auth_token=self._token)) if self._source else None
            places = [self._destination(name, client, at) for name in self._destinations]
        self._snapshot = {
            'at': _iso(at),
            'interval': self._interval,
            'source': redact(self._source) if self._source else None,
            'metrics': {'addresses': list(self._addresses), 'problems': problems},
            'destinations': places,
            'reorgs': list(self._reorgs),
            'figures': [[seen, figures.to_dict()] for seen, figures in self._figures],
        }

    def _read_figures(self, at: float) -> list[str]:
        seen, problems = Figures(), []
        for address in self._addresses:
            try:
                seen = seen.plus(read_figures(address))
            except (OSError, ValueError) as error:
                problems.append(f'{address} does not answer: {error}')
        if self._addresses:
            self._figures.append((at, seen))
        return problems

    def _destination(self, name: str, client: Client | None, at: float) -> dict[str, Any]:
        shown = redact(name)
        try:
            with open_destination(name) as loader:
                found = status_of(loader, client)
        except AmpError as error:
            return {'name': shown, 'problem': redact(error.message), 'hint': error.hint, 'streams': []}
        return {'name': shown, 'problem': None, 'streams': [self._stream(shown, one, at) for one in found]}

    def _stream(self, place: str, one: StreamStatus, at: float) -> dict[str, Any]:
        key = one.info.key
        known = one.to_dict()
        networks = sorted({r.network for r in (*one.history, *one.gaps)} | set(known['head'] or {}))
        return {
            'table': key.table,
            'stream': key.name,
            'owner': known['owner'],
            'taken_at': known['taken_at'],
            'committed_at': known['committed_at'],
            'epoch': known['epoch'],
            'lanes': known['lanes'],
            'query': known['query'],
            'server': known['server'],
            'networks': [self._network(place, one, network, at) for network in networks],
            'commands': commands_of(place, one, redact(self._source) if self._source else None),
        }

    def _network(self, place: str, one: StreamStatus, network: str, at: float) -> dict[str, Any]:
        key = one.info.key
        ends = {r.network: r.end for r in one.info.state.position.ranges}
        head = None if one.coverage is None else next((r.end for r in one.coverage if r.network == network), None)
        window = {r.end: r.hash for entry in one.info.state.entries for r in entry.ranges if r.network == network}
        kept = [r.start for entry in one.info.state.entries for r in entry.ranges if r.network == network]
        history = self._histories.setdefault((place, key.table, key.name, network), _History())
        depth = history.look(at, ends.get(network), head, window)
        reorg: Mapping[str, float | None] | None
        if self._told_by_figures(key.table, key.name):
            reorg = self._reorg_told(key.table, key.name)
        else:
            reorg = None if depth is None else {'depth': depth, 'rows': None}
        if reorg is not None:
            where = {'destination': place, 'table': key.table, 'stream': key.name, 'network': network}
            self._reorgs.append({'at': _iso(at), **where, 'at_block': ends.get(network), **reorg})
        lag = (one.lag or {}).get(network) if network in ends else None
        return {
            'network': network,
            'head': head,
            'durable': ends.get(network),
            'retained': min(kept, default=None),
            'lag': lag,
            'seconds_left': history.seconds_left(lag),
            'ranges': _spans(one.history, network),
            'gaps': _spans(one.gaps, network),
            'running': self._running(key.table, key.name, network),
            'samples': list(history.samples),
        }

    def _running(self, table: str, stream: str, network: str) -> list[list[int]]:
        return self._figures[-1][1].running(table, stream, network) if self._figures else []

    def _told_by_figures(self, table: str, stream: str) -> bool:
        return bool(self._figures) and self._figures[-1][1].total('commits', table, stream) is not None

    def _reorg_told(self, table: str, stream: str) -> dict[str, float] | None:
        """Depth and rows of the reorgs between the last two readings of the metrics; None when there was none."""
        if len(self._figures) < 2:
            return None
        before, now = self._figures[-2][1], self._figures[-1][1]

        def grown(figure: str) -> float:
            return (now.total(figure, table, stream) or 0.0) - (before.total(figure, table, stream) or 0.0)

        if grown('reorgs') <= 0:
            return None
        return {'depth': grown('blocks_undone'), 'rows': grown('rows_undone')}


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec='seconds')


def _spans(ranges: Sequence[BlockRange], network: str) -> list[list[int]]:
    return [[r.start, r.end] for r in ranges if r.network == network]
