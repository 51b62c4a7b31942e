"""Where the streams of a destination stand, and how far the server is ahead of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amp.config.connection_manager import ConnectionManager
from amp.config.urls import is_url, loader_of_url
from amp.errors import DestinationError, SourceError, redact
from amp.loaders.lanes import family, gaps_of, history_of, leader
from amp.loaders.registry import create_loader
from amp.loaders.unit import StreamInfo
from amp.streaming.ledger import StreamKey, StreamState
from amp.streaming.types import BlockRange

if TYPE_CHECKING:
    from amp.client import Client
    from amp.loaders.base import DataLoader

__all__ = ['StreamStatus', 'as_table', 'open_destination', 'server_coverage', 'status_of']

# SQL ends with its SETTINGS; inside another query they have no place.
_SETTINGS = re.compile(
    r"""\s+settings\s+[\w.]+\s*=\s*('[^']*'|[^\s,;']+)(\s*,\s*[\w.]+\s*=\s*('[^']*'|[^\s,;']+))*\s*;?\s*$""",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class StreamStatus:
    """What a destination says of one stream. `coverage` is what the server has for its query, None when not asked.

    `server` says why the server's side is missing; `window_blocks` are the blocks that could still be taken back; `lanes` of a backfill hold part of the history.
    """

    info: StreamInfo
    history: tuple[BlockRange, ...]
    gaps: tuple[BlockRange, ...]
    window_entries: int
    window_blocks: int
    coverage: tuple[BlockRange, ...] | None = None
    server: str | None = None
    lanes: int = 0

    @property
    def lag(self) -> dict[str, int] | None:
        """Blocks by which the server is ahead, per network; negative when it is behind. None when not known."""
        if self.coverage is None:
            return None
        ends = {r.network: r.end for r in self.info.state.position.ranges}
        return {r.network: r.end - ends.get(r.network, r.start - 1) for r in self.coverage}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        info = self.info
        return {
            'table': info.key.table,
            'stream': info.key.name,
            'number': info.state.number,
            'epoch': info.state.epoch,
            'position': {r.network: {'number': r.end, 'hash': r.hash} for r in info.state.position.ranges},
            'history': [r.to_dict() for r in self.history],
            'lanes': self.lanes,
            'gaps': [r.to_dict() for r in self.gaps],
            'undo_window': {'entries': self.window_entries, 'blocks': self.window_blocks},
            'owner': info.claim.owner,
            'taken_at': info.claim.taken_at,
            'committed_at': info.committed_at,
            'query': info.claim.query,
            'head': None if self.coverage is None else {r.network: r.end for r in self.coverage},
            'lag': self.lag,
            'server': self.server,
        }


def status_of(loader: DataLoader[Any], source: Client | None = None) -> list[StreamStatus]:
    """Every stream of a connected loader; with `source` also the server's coverage of each query.

    A server that does not answer is told in `server`, and asked no more. Raises DestinationError and IntegrityError.
    """
    found = []
    down: str | None = None
    infos = loader.streaming_destination().list_streams()
    for key in dict.fromkeys(map(leader, infos)):
        members = family(infos, key)
        info = members[0]
        coverage: tuple[BlockRange, ...] | None = None
        problem = down
        if source is not None and problem is None:
            if info.claim.query is None:
                problem = 'no query is stored with the stream'
            else:
                try:
                    coverage = server_coverage(source, info.claim.query)
                except SourceError as error:
                    problem = redact(error.message)
                    down = problem if error.retryable else None
        found.append(_status(key, members, coverage, problem))
    return found


def _status(
    key: StreamKey, members: Sequence[StreamInfo], coverage: tuple[BlockRange, ...] | None, problem: str | None
) -> StreamStatus:
    info = members[0]
    lanes = [member for member in members if member.key != key]
    if info.key != key:
        # Only lanes yet: the stream itself has not begun.
        info = StreamInfo(key, StreamState(info.state.number, info.state.epoch), info.claim, info.committed_at)
    state = info.state
    return StreamStatus(
        info,
        history_of(members),
        gaps_of(members),
        len(state.entries),
        sum(_blocks(entry.ranges) for entry in state.entries),
        coverage,
        problem,
        len(lanes),
    )


def server_coverage(client: Client, query: str) -> tuple[BlockRange, ...]:
    """What the server's tables cover for `query`, one range a network; empty when it has nothing. Raises SourceError."""
    asked = client.sql(f'SELECT * FROM {as_table(query)} LIMIT 0')
    coverage: tuple[BlockRange, ...] = ()
    with closing(asked.responses(streaming=False)) as responses:
        for response in responses:
            coverage = response.metadata.ranges
    return coverage


def as_table(query: str) -> str:
    """`query` as something to select from: without SETTINGS and semicolon, in brackets."""
    text = _SETTINGS.sub('', query.strip().rstrip(';'))
    # A line of its own: the text may end with a comment.
    return f'(\n{text.strip().rstrip(";")}\n) AS amp_query'


@contextmanager
def open_destination(text: str) -> Iterator[DataLoader[Any]]:
    """The connected loader of a destination's URL or name, for looking only: nothing is made that is not there.

    Raises ConfigError for a name that is not known, DestinationError for a file or folder that is not there.
    """
    if is_url(text):
        loader = create_loader(loader_of_url(text), {'url': text})
    else:
        named = ConnectionManager().get(text)
        loader = create_loader(named.loader, named.config())
    key = loader.URL_PATH_KEY
    path = str(getattr(loader.config, key, '')) if key else ''
    if path and '://' not in path and path != ':memory:' and not Path(path).exists():
        raise DestinationError(f'there is nothing at {path}', hint='check the path of the destination', path=path)
    with loader:
        yield loader


def _blocks(ranges: Sequence[BlockRange]) -> int:
    return sum(r.end - r.start + 1 for r in ranges)
