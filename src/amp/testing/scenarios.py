"""What the chain does while a stream follows it and processes are killed.

Every chain starts with 12 blocks, and microbatches hold four: they end at blocks 3, 7 and 11. So a reorg of depth 4
replaces a whole committed range, and one of depth 6 starts inside one.
"""

from __future__ import annotations

from amp.testing.conformance import Scenario, Trial

__all__ = ['SCENARIOS', 'UPSERTS']

_BOUNDARY, _INSIDE = 4, 6


def _append(trial: Trial) -> None:
    trial.arm()
    trial.finish()


def _backlog(trial: Trial) -> None:
    trial.amp.faults.split(3)
    trial.arm()
    trial.finish()


def _tip(trial: Trial) -> None:
    trial.follow()
    trial.arm()
    for _ in range(3):
        trial.mine(1)
        trial.follow()
    trial.finish()


def _reorg(trial: Trial, depth: int) -> None:
    trial.follow()
    trial.arm()
    trial.reorg(depth)
    trial.follow()
    trial.mine(2)
    trial.finish()


def _reorg_while_down(trial: Trial) -> None:
    trial.follow()
    trial.stop()
    trial.reorg(_INSIDE)
    trial.arm()
    trial.finish()


def _there_and_back(trial: Trial) -> None:
    trial.follow()
    trial.arm()
    trial.reorg(_INSIDE)
    trial.follow()
    trial.arm()
    trial.switch_back()
    trial.finish()


def _forgotten_orphans(trial: Trial) -> None:
    trial.follow()
    trial.stop()
    trial.reorg(_INSIDE)
    trial.amp.forget_orphans()
    trial.arm()
    trial.finish()


def _ignored_cursor(trial: Trial) -> None:
    trial.follow()
    trial.stop()
    trial.mine(2)
    trial.amp.faults.ignore_cursor()
    trial.arm()
    trial.finish()


def _upsert_and_reorg(trial: Trial) -> None:
    trial.follow()
    trial.arm()
    trial.reorg(_INSIDE)
    trial.follow()
    trial.stop()
    trial.reorg(_BOUNDARY)
    trial.finish()


_EACH = {'commit_rows': 1}

SCENARIOS = (
    Scenario('append', _append, _EACH),
    Scenario('backlog', _backlog),
    Scenario('tip', _tip),
    Scenario('reorg at a boundary', lambda trial: _reorg(trial, _BOUNDARY), _EACH),
    Scenario('reorg inside a range', lambda trial: _reorg(trial, _INSIDE), _EACH),
    Scenario('reorg while down', _reorg_while_down, _EACH),
    Scenario('there and back', _there_and_back, _EACH),
    Scenario('forgotten orphans', _forgotten_orphans, _EACH),
    Scenario('ignored cursor', _ignored_cursor, _EACH),
)

UPSERTS = Scenario('upsert and reorg', _upsert_and_reorg, {**_EACH, 'mode': 'upsert', 'key_columns': ['address']})
