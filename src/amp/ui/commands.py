"""The command line for everything that the page shows: to be copied, never run from there."""

from __future__ import annotations

import shlex

from amp.loaders.status import StreamStatus

__all__ = ['commands_of']


def commands_of(destination: str, one: StreamStatus, source: str | None) -> list[dict[str, str]]:
    """What a person may want to do with a stream, as lines for a shell. Every name is quoted; no secret is in them."""
    key, query = one.info.key, one.info.claim.query
    table = ['--table', key.table]
    server = source or 'SERVER'
    asked = ['--source', source] if source else []
    lines = [
        ('Where it stands', ['amp', 'status', destination, *table, *asked]),
        ('Compare every row', ['amp', 'verify', destination, *table, *asked]),
    ]
    if query is not None:
        into = ['--to', destination, *table]
        named = ['--name', key.name] if key.name != key.table else []
        lines.append(('Go on with it', ['amp', 'stream', server, query, *into, *named]))
        lines.append(('What a load would do', ['amp', 'plan', server, query, *into]))
        lines += [
            (
                f'Fill the gap {gap.start:,} to {gap.end:,}',
                ['amp', 'backfill', server, query, *into, *named, '--from', str(gap.start), '--end', str(gap.end + 1)],
            )
            for gap in one.gaps[:8]
        ]
    return [{'what': what, 'line': shlex.join(words)} for what, words in lines]
