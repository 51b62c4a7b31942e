"""How often a loader tries, how fast, and what it learns from each failure: one for each loader."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from amp.events import Retrying, emit
from amp.streaming.resilience import (
    AdaptiveBatchSize,
    AdaptiveRateLimiter,
    CircuitBreaker,
    CircuitOpenError,
    ErrorClassifier,
    ErrorKind,
    ExponentialBackoff,
    ResilienceConfig,
    RetryConfig,
)

__all__ = ['Attempts']

T = TypeVar('T')

_ONCE = RetryConfig(enabled=False)


class Attempts:
    """The limiter, the breaker and the batch size of one destination, and the loop around a plain load."""

    def __init__(self, config: ResilienceConfig, loader: str, is_transient: Callable[[Exception], bool]) -> None:
        self.config = config
        self.limiter = AdaptiveRateLimiter(config.back_pressure)
        self.breaker = CircuitBreaker(config.circuit_breaker)
        self.batch_size = AdaptiveBatchSize()
        self._loader = loader
        self._is_transient = is_transient

    def before(self) -> None:
        """Wait as long as the destination asked for. Raises CircuitOpenError."""
        self.breaker.before()
        self.limiter.wait()

    def succeeded(self) -> None:
        """A unit is durable."""
        self.breaker.record_success()
        self.limiter.record_success()
        self.batch_size.record_success()

    def failed(self, error: Exception) -> ErrorKind:
        """A unit failed; what its error means."""
        kind = ErrorClassifier.classify(error)
        if not kind.is_transient and self._is_transient(error):
            kind = ErrorKind.TRANSIENT
        # A breaker that took its own refusals for failures would never let a probe through.
        if kind.is_transient and not isinstance(error, CircuitOpenError):
            self.breaker.record_failure()
        self.limiter.record(kind)
        if kind is ErrorKind.TIMEOUT:
            self.batch_size.record_timeout()
        return kind

    def run(
        self, once: Callable[[], T], may_repeat: Callable[[], bool], sleep: Callable[[float], object] = time.sleep
    ) -> T:
        """What `once` returns, tried again after a transient failure as long as `may_repeat` says so.

        No try is spent while the breaker is open: the wait before it is at least the breaker's.
        """
        backoff = ExponentialBackoff(self.config.retry or _ONCE)
        while True:
            self.before()
            try:
                result = once()
            except Exception as error:  # drivers have their own kinds: `failed` tells which pass, the others are raised
                kind = self.failed(error)
                delay = backoff.next_delay(self.breaker.rest) if kind.is_transient and may_repeat() else None
                if delay is None:
                    raise
                emit(Retrying(self._loader, kind.value, backoff.attempt, delay, error))
                sleep(delay)
            else:
                self.succeeded()
                return result
