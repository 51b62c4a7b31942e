"""The conformance kit as a pytest class.

    class TestMyLoader(ExactlyOnceTests):
        def make_destination(self, tmp_path):
            return Destination('mine', {'path': str(tmp_path / 'x')}, modules=('my_package.loader',))

What runs by default is a representative part; `-m slow` is everything. A proof that a destination cannot take (two
processes in one file, a network that it does not have, a mode that it refuses) is replaced by the proof that it says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from amp.testing import proofs
from amp.testing.conformance import Conformance, Destination, Scenario
from amp.testing.scenarios import SCENARIOS, UPSERTS

__all__ = ['ExactlyOnceTests']

_REPRESENTATIVE = [s for s in SCENARIOS if s.name in {'backlog', 'reorg inside a range'}]
_OTHERS = [s for s in SCENARIOS if s.name in {'there and back', 'forgotten orphans'}]
_A_FEW = [
    {'point': point, 'nth': 1} for point in ('unit.begun', 'unit.after_data', 'unit.before_commit', 'unit.committed')
]


@pytest.mark.chaos
@pytest.mark.integration
class ExactlyOnceTests:
    """Subclass it and give `make_destination`. `needed_points` must be passed by the scenarios that run by default."""

    needed_points: ClassVar[frozenset[str]] = frozenset(
        {'unit.begin', 'unit.begun', 'unit.before_data', 'unit.after_data', 'unit.before_commit', 'unit.committed'}
    )

    def make_destination(self, tmp_path: Path) -> Destination:
        """A fresh destination; what it keeps may lie in `tmp_path`."""
        raise NotImplementedError

    @pytest.fixture
    def kit(self, tmp_path: Path) -> Iterator[Conformance]:
        """The proofs for this destination."""
        with Conformance(self.make_destination(tmp_path)) as kit:
            yield kit

    @pytest.mark.parametrize('scenario', _REPRESENTATIVE, ids=str)
    def test_a_crash_at_every_point(self, kit: Conformance, scenario: Scenario) -> None:
        """One run after the other, each killed at the next point."""
        points = kit.crash_everywhere(scenario)
        missed = self.needed_points - set(points)
        if 'reorg' in scenario.name and missed:
            pytest.fail(f'{scenario} never came to {sorted(missed)}')

    @pytest.mark.parametrize('scenario', _OTHERS, ids=str)
    def test_a_few_crashes(self, kit: Conformance, scenario: Scenario) -> None:
        """Where the chain returns to where it was, and where the server forgets."""
        kit.crash_at(scenario, _A_FEW)

    def test_kills_at_random_moments(self, kit: Conformance) -> None:
        """A few."""
        proofs.random_kills(kit, 6, seed=1)

    def test_two_streams_in_one_table(self, kit: Conformance) -> None:
        """Each undoes its own rows."""
        proofs.two_streams_in_one_table(kit)

    @pytest.mark.parametrize('point', ['unit.begin', 'unit.after_data', 'unit.before_commit'])
    def test_a_writer_that_wakes_up_late_loses(self, kit: Conformance, point: str) -> None:
        """Or there can be no second one."""
        if kit.destination.single_process:
            proofs.second_process_is_refused(kit)
        else:
            proofs.late_writer_loses(kit, point)

    def test_documents_are_replaced_by_who_knows_them(self, kit: Conformance) -> None:
        """Or the destination has transactions and keeps none."""
        proofs.documents_are_compared(kit)

    def test_an_upsert_followed_by_a_reorg(self, kit: Conformance) -> None:
        """The rows that were replaced come back, also after crashes; or the mode is refused by name."""
        if kit.destination.upserts:
            kit.crash_at(UPSERTS, _A_FEW)
        else:
            proofs.upsert_is_refused(kit)

    def test_a_large_microbatch_in_flat_memory(self, kit: Conformance) -> None:
        """Of 20 batches and of 80."""
        proofs.memory_stays_flat(kit)

    def test_a_lost_acknowledgement(self, kit: Conformance) -> None:
        """For a destination with a network."""
        if kit.destination.proxy is not None:
            proofs.lost_acknowledgement(kit)

    @pytest.mark.slow
    @pytest.mark.timeout(1800)
    @pytest.mark.parametrize('scenario', [*SCENARIOS, UPSERTS], ids=str)
    def test_the_full_matrix(self, kit: Conformance, scenario: Scenario) -> None:
        """Every point, its first and second time, each with a fresh table."""
        if scenario is not UPSERTS or kit.destination.upserts:
            kills = kit.crash_one_by_one(scenario)
            if kills < len(self.needed_points):
                pytest.fail(f'{scenario}: only {kills} kills')

    @pytest.mark.slow
    @pytest.mark.timeout(1800)
    @pytest.mark.parametrize('seed', range(4))
    def test_two_hundred_kills_at_random_moments(self, kit: Conformance, seed: int) -> None:
        """In four chains."""
        proofs.random_kills(kit, 50, seed)
