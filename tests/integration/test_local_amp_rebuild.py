"""A client that drops what a range replaces has, whatever the chain does, exactly the canonical rows."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest

from amp.devserver import LocalAmp
from tests.support.bare_client import BareClient

pytestmark = pytest.mark.integration

SQL = 'SELECT block_num, tx_hash, log_index FROM eth_rpc.logs'


def change(amp: LocalAmp, choice: random.Random) -> None:
    what = choice.random()
    if what < 0.5:
        amp.mine(choice.randint(1, 9))
    elif what < 0.9 or not forked(amp):
        amp.reorg(choice.randint(1, min(amp.head[0], 8)), choice.randint(0, 3))


def forked(amp: LocalAmp) -> bool:
    try:
        amp.switch_back()
    except ValueError:
        return False
    return True


def follow(client: BareClient, amp: LocalAmp, rows: dict[int, list], cursor: dict | None) -> dict:
    """Read until the head, dropping the blocks that each range replaces; the new cursor."""
    with client.stream(SQL, None if cursor is None else {'simnet': cursor}) as stream:
        while cursor is None or cursor['hash'] != amp.head[1]:
            microbatch = stream.microbatch()
            start, end = microbatch[-1].span
            for number in [n for n in rows if n >= start]:
                del rows[number]
            for received in microbatch:
                for row in received.batch.to_pylist():
                    rows[row['block_num']].append((row['tx_hash'], row['log_index']))
            cursor = {'number': end, 'hash': microbatch[-1].range['hash']}
    return cursor


@pytest.mark.parametrize('seed', range(12))
def test_rebuilt_through_random_reorgs_and_reconnects(seed):
    choice = random.Random(seed)
    size = choice.choice([1, 3, 7, 1000])
    with (
        LocalAmp.simulate(seed=seed, blocks=5, logs_per_block=(0, 4), microbatch_max_blocks=size) as amp,
        BareClient(amp.url) as client,
    ):
        rows, cursor = defaultdict(list), None
        for _ in range(12):
            change(amp, choice)
            if cursor is None or cursor['hash'] != amp.head[1]:
                cursor = follow(client, amp, rows, cursor)
            wanted = defaultdict(list)
            for row in amp.canonical('logs').to_pylist():
                wanted[row['block_num']].append((row['tx_hash'], row['log_index']))
            assert rows == wanted
