"""What a stream means: pure state machines, and the few rooms that read for them."""

from amp.streaming.types import BatchIdentifier, BatchMetadata, BlockRange, ResponseBatch, ResumeWatermark

__all__ = ['BatchIdentifier', 'BatchMetadata', 'BlockRange', 'ResponseBatch', 'ResumeWatermark']
