"""What a stream means: pure state machines, and the few rooms that read for them."""

from typing import TYPE_CHECKING, Any

from amp.streaming.iterator import StreamingResultIterator
from amp.streaming.parallel import BlockRangePartitionStrategy, ParallelConfig, QueryPartition
from amp.streaming.reorg import ReorgAwareStream
from amp.streaming.resilience import (
    AdaptiveRateLimiter,
    BackPressureConfig,
    CircuitBreaker,
    ErrorClassifier,
    ExponentialBackoff,
    RetryConfig,
)
from amp.streaming.state import InMemoryStreamStateStore, NullStreamStateStore, ProcessedBatch, StreamStateStore
from amp.streaming.types import BatchIdentifier, BatchMetadata, BlockRange, ResponseBatch, ResumeWatermark

if TYPE_CHECKING:
    from amp.streaming.parallel import ParallelStreamExecutor

__all__ = [
    'AdaptiveRateLimiter',
    'BackPressureConfig',
    'BatchIdentifier',
    'BatchMetadata',
    'BlockRange',
    'BlockRangePartitionStrategy',
    'CircuitBreaker',
    'ErrorClassifier',
    'ExponentialBackoff',
    'InMemoryStreamStateStore',
    'NullStreamStateStore',
    'ParallelConfig',
    'ParallelStreamExecutor',
    'ProcessedBatch',
    'QueryPartition',
    'ReorgAwareStream',
    'ResponseBatch',
    'ResumeWatermark',
    'RetryConfig',
    'StreamStateStore',
    'StreamingResultIterator',
]


# Not for type checkers: to them a name that is not there would be one of type Any.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        # Found late: it drives loaders.
        if name == 'ParallelStreamExecutor':
            from amp.streaming import parallel

            return parallel.ParallelStreamExecutor
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
