"""A naive oracle for state stores: sets of batches and sets of blocks, no order and no cleverness."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from hypothesis import strategies as st

from amp.streaming.state import BatchIdentifier, OrderedStateStore
from amp.streaming.types import BlockRange, ResumeWatermark

NETWORKS = ('eth', 'base')
STREAMS = (None, '', 'other')
LAST_BLOCK = 30

# Histories that collide find more than histories that are spread out.
_MOSTLY_ONE = ('eth', 'eth', 'eth', 'base')


@dataclass
class NetworkModel:
    """One network of one stream.

    `most_known` never forgets a hash unless it is undone; `least_known` keeps only what a position needs. A store may
    know anything in between.
    """

    batches: set[BatchIdentifier] = field(default_factory=set)
    forgotten: set[BatchIdentifier] = field(default_factory=set)
    final: set[int] = field(default_factory=set)
    most_known: dict[int, BatchIdentifier] = field(default_factory=dict)
    least_known: dict[int, BatchIdentifier] = field(default_factory=dict)

    @property
    def covered(self) -> set[int]:
        return self.final.union(*(blocks(b) for b in self.batches))

    def mark(self, batch: BatchIdentifier) -> None:
        self.batches.add(batch)
        self.most_known[batch.end_block] = self.least_known[batch.end_block] = batch

    def invalidate(self, from_block: int) -> set[BatchIdentifier]:
        gone = {b for b in self.batches if b.end_block >= from_block}
        self.batches -= gone
        self.final = {b for b in self.final if b < from_block}
        self.most_known = {e: b for e, b in self.most_known.items() if e < from_block}
        self.least_known = {e: b for e, b in self.least_known.items() if e < from_block}
        return gone

    def cleanup(self, before_block: int) -> None:
        gone = {b for b in self.batches if b.end_block < before_block}
        self.batches -= gone
        self.forgotten |= gone
        self.final = self.final.union(*(blocks(b) for b in gone))
        for end in sorted(self.least_known, reverse=True):
            live = any(b.end_block == end for b in self.batches)
            newest = not any(e in self.least_known for e in self._run_after(end))
            if not live and end + 1 in self.final and not newest:
                del self.least_known[end]

    def _run_after(self, block: int) -> Iterable[int]:
        covered = self.covered
        while block + 1 in covered:
            block += 1
            yield block

    def gaps(self, start_block: int) -> list[tuple[int, int]]:
        covered = self.covered
        holes = [b for b in range(start_block, max(covered, default=-1)) if b not in covered]
        runs: list[tuple[int, int]] = []
        for b in holes:
            if runs and runs[-1][1] == b - 1:
                runs[-1] = (runs[-1][0], b)
            else:
                runs.append((b, b))
        return runs

    def contiguous_until(self, start_block: int) -> int | None:
        """The last block before the first gap; None when `start_block` and the block before it are not covered."""
        covered = self.covered
        if start_block in covered:
            return next(b for b in range(start_block, LAST_BLOCK + 2) if b + 1 not in covered)
        return start_block - 1 if start_block - 1 in covered else None


def blocks(batch: BatchIdentifier) -> set[int]:
    return set(range(batch.start_block, batch.end_block + 1))


def batches() -> st.SearchStrategy[BatchIdentifier]:
    """Any range, or one of a neat chain, so that exact neighbours and repetitions are common."""
    anywhere = st.tuples(st.integers(0, LAST_BLOCK), st.integers(0, LAST_BLOCK)).map(sorted)
    neat = st.integers(0, LAST_BLOCK // 3 - 1).map(lambda i: [3 * i, 3 * i + 2])
    return st.builds(
        lambda network, bounds, fork: BatchIdentifier(network, *bounds, f'{fork}{bounds[1]}', f'{fork}{bounds[0] - 1}'),
        st.sampled_from(_MOSTLY_ONE),
        st.one_of(anywhere, neat),
        st.sampled_from('ab'),
    )


def operations() -> st.SearchStrategy[list[tuple[object, ...]]]:
    stream = st.sampled_from((None, None, None, *STREAMS))
    at = st.tuples(st.sampled_from(_MOSTLY_ONE), st.integers(0, LAST_BLOCK + 2))
    operation = st.one_of(
        st.tuples(st.just('mark'), stream, st.lists(batches(), min_size=1, max_size=6)),
        st.tuples(st.just('mark'), stream, st.lists(batches(), min_size=1, max_size=6)),
        st.tuples(st.just('invalidate'), stream, at),
        st.tuples(st.just('cleanup'), stream, at),
    )
    return st.lists(operation, min_size=1, max_size=14)


def check_store_against_model(store: OrderedStateStore, table: str, steps: list[tuple[object, ...]]) -> None:
    """Do the steps in the store and in the model, and compare everything a caller can see after each."""
    models: dict[object, dict[str, NetworkModel]] = defaultdict(lambda: defaultdict(NetworkModel))
    seen: set[BatchIdentifier] = set()
    for name, stream, argument in steps:
        model = models[stream]
        if name == 'mark':
            store.mark_processed('any', table, argument, stream=stream)
            for batch in argument:
                model[batch.network].mark(batch)
                seen.add(batch)
        elif name == 'invalidate':
            network, block = argument
            removed = store.invalidate_from_block('any', table, network, block, stream=stream)
            assert len(removed) == len(set(removed))
            assert set(removed) == model[network].invalidate(block)
            assert [b.end_block for b in removed] == sorted(b.end_block for b in removed)
        else:
            before = _positions(store, table, stream)
            store.cleanup_before_block('any', table, *argument, stream=stream)
            model[argument[0]].cleanup(argument[1])
            assert _positions(store, table, stream) == before
        for each in STREAMS:
            _check(store, table, each, models[each], seen)


def _positions(store: OrderedStateStore, table: str, stream: str | None) -> list[ResumeWatermark | None]:
    gapped = [store.get_resume_position('', table, True, stream, start) for start in range(0, LAST_BLOCK, 3)]
    return [store.get_resume_position('', table, stream=stream), *gapped]


def _check(
    store: OrderedStateStore,
    table: str,
    stream: str | None,
    model: dict[str, NetworkModel],
    seen: set[BatchIdentifier],
) -> None:
    remembered = [p.identifier for p in store.processed_batches(table, stream)]
    assert len(remembered) == len(set(remembered))
    assert set(remembered) == {b for m in model.values() for b in m.batches}

    newest = store.get_resume_position('one name', table, stream=stream)
    for network in NETWORKS:
        _check_range(newest, model[network], network, 0, LAST_BLOCK)
    for start_block in (0, 1, 7, LAST_BLOCK + 5):
        found = store.get_resume_position('another', table, True, stream, start_block)
        gaps = [(g.network, g.start, g.end) for g in (found.gaps if found is not None else ())]
        assert gaps == [(n, *gap) for n in sorted(NETWORKS) for gap in model[n].gaps(start_block)]
        for network in NETWORKS:
            until = model[network].contiguous_until(start_block)
            _check_range(found, model[network], network, start_block - 1, until)

    for batch in seen:
        m = model[batch.network]
        processed = store.is_processed('', table, [batch], stream=stream)
        if batch in m.batches:
            assert processed
        elif not blocks(batch) <= m.final:
            assert not processed
        elif batch in m.forgotten and m.most_known.get(batch.end_block) == batch:
            assert processed


def _check_range(found: ResumeWatermark | None, model: NetworkModel, network: str, low: int, high: int | None) -> None:
    """The position lies between what the least and the most knowing store would say, with the right hashes."""
    ranges = [r for r in (found.ranges if found is not None else ()) if r.network == network]
    least, most = (
        max((e for e in known if high is not None and low <= e <= high), default=None)
        for known in (model.least_known, model.most_known)
    )
    if not ranges:
        assert least is None
        return
    (position,) = ranges
    assert most is not None
    assert position.end in model.most_known
    assert (-1 if least is None else least) <= position.end <= most
    assert position == _range_of(model.most_known[position.end])


def _range_of(batch: BatchIdentifier) -> BlockRange:
    return batch.to_block_range()
