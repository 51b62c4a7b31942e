"""What a soak has measured, and whether it is as it should be."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ['figures', 'slope']

Sample = Mapping[str, Any]
_MB = 1024**2


def slope(samples: Sequence[Sample], key: str) -> float:
    """Units of `key` a second, by least squares."""
    if len(samples) < 2:
        return 0.0
    return statistics.linear_regression([s['seconds'] for s in samples], [float(s[key]) for s in samples]).slope


def figures(
    samples: Sequence[Sample], done: Mapping[str, Mapping[str, int]], reorgs: int, blocks: int
) -> dict[str, Any]:
    """The report: counts, the curve of memory in MB, and its slope in MB an hour over the second half."""
    half = [s for s in samples if s['seconds'] >= samples[-1]['seconds'] / 2]
    last = samples[-1]
    step = max(len(samples) // 30, 1)
    streams = last['streams']
    return {
        'seconds': last['seconds'],
        'blocks': blocks,
        'reorgs of the chain': reorgs,
        'rows': sum(s.get('rows', 0) for s in streams.values()),
        'commits': sum(s.get('commits', 0) for s in streams.values()),
        'rows undone': sum(s.get('undone', 0) for s in streams.values()),
        'retries': sum(n for s in streams.values() for key, n in s.items() if key.startswith('retries')),
        'restarts': sum(s.get('restarts', 0) for s in streams.values()),
        'streams': streams,
        'faults': done,
        'memory in MB': [round(s['rss'] / _MB) for s in samples[::step]],
        'memory slope in MB an hour': round(slope(half, 'rss') * 3600 / _MB, 1),
        'memory growth of the second half in MB': round(
            slope(half, 'rss') * (half[-1]['seconds'] - half[0]['seconds']) / _MB, 1
        ),
        # Whose it is: what Python holds, what the C library has given out, what Arrow has. The rest of the memory is held
        # by allocators that libraries bring with them, and by what they keep for the next time.
        'python blocks, least of each tenth': _least(samples, 'blocks'),
        'malloc in MB, least of each tenth': [round(n / _MB, 1) for n in _least(samples, 'malloc')],
        'arrow in MB, least of each tenth': [round(n / _MB, 1) for n in _least(samples, 'arrow')],
        'fds': [s['fds'] for s in samples[::step]],
        'threads': [s['threads'] for s in samples[::step]],
        'sockets': [s['sockets'] for s in samples[::step]],
    }


def _least(samples: Sequence[Sample], key: str) -> list[int]:
    """What was held at the quietest moment of each tenth: work under way and uncollected rubbish come on top."""
    size = max(len(samples) // 10, 1)
    tenths = [[s[key] for s in samples[at : at + size] if s[key] is not None] for at in range(0, len(samples), size)]
    return [min(tenth) for tenth in tenths[:10] if tenth]
