"""Trying again without making it worse: retry with a budget, a limiter that learns, a breaker, batches that shrink.

Nothing here knows what is being tried. Whether a unit may be tried again at all is the engine's and the base loader's
business: one whose outcome is unknown never is.
"""

from __future__ import annotations

import math
import random
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from amp.errors import AmpError, ConfigError, DestinationError
from amp.streaming.error_kinds import ErrorClassifier, ErrorKind

__all__ = [
    'PRESETS',
    'AdaptiveBatchSize',
    'AdaptiveRateLimiter',
    'BackPressureConfig',
    'CircuitBreaker',
    'CircuitBreakerConfig',
    'CircuitOpenError',
    'ErrorClassifier',
    'ErrorKind',
    'ExponentialBackoff',
    'ResilienceConfig',
    'RetryConfig',
    'patiently',
]

T = TypeVar('T')

_A_DAY = 86_400_000.0
# What each number may be, both included. A pause that is no number, or longer than a day, is a mistake.
_BOUNDS = {
    'max_retries': (0, math.inf),
    'initial_backoff_ms': (0, _A_DAY),
    'max_backoff_ms': (0, _A_DAY),
    'backoff_multiplier': (1, 1_000),
    'budget_seconds': (0, sys.float_info.max),
    'initial_delay_ms': (0, _A_DAY),
    'max_delay_ms': (0, _A_DAY),
    'recovery_factor': (0, 1),
    'max_bytes_in_flight': (1, math.inf),
    'failure_threshold': (1, math.inf),
    'recovery_ms': (0, _A_DAY),
}


def _check(config: Any) -> None:
    """Raises ConfigError, with the key and what it may be, for a value that cannot be meant."""
    for field in fields(config):
        value, wanted = getattr(config, field.name), str(field.type)
        if value is None and 'None' in wanted:
            continue
        if wanted.startswith('bool'):
            good, meant = isinstance(value, bool), 'true or false'
        else:
            least, most = _BOUNDS[field.name]
            of_kind = isinstance(value, int if wanted.startswith('int') else int | float)
            good = of_kind and not isinstance(value, bool) and least <= value <= most
            number = 'a whole number' if wanted.startswith('int') else 'a number'
            meant = f'{number} of {least} or more' if most > _A_DAY else f'{number} from {least} to {most:.0f}'
        if not good:
            none = ', or none' if 'None' in wanted else ''
            raise ConfigError(f'resilience: {field.name} cannot be {value!r}', hint=f'it is {meant}{none}')


@dataclass(frozen=True)
class RetryConfig:
    """`max_retries` after the first try (None: without end), for `budget_seconds` at most (None: for ever).

    The wait begins at `initial_backoff_ms`, is multiplied each time and stays below `max_backoff_ms`; `jitter` draws it
    from half to one and a half of that, so that many clients do not come back together.
    """

    enabled: bool = True
    max_retries: int | None = 5
    initial_backoff_ms: float = 2_000
    max_backoff_ms: float = 120_000
    backoff_multiplier: float = 2.0
    jitter: bool = True
    budget_seconds: float | None = None

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class BackPressureConfig:
    """A pause before each unit that grows when the destination says that it is too much, and shrinks with success.

    `recovery_factor` is what is left of the pause after a success. `max_bytes_in_flight`: how much of a stream may be
    received and not yet handed over (None: the reader's default).
    """

    enabled: bool = True
    initial_delay_ms: float = 0
    max_delay_ms: float = 5_000
    adapt_on_429: bool = True
    adapt_on_timeout: bool = True
    recovery_factor: float = 0.9
    max_bytes_in_flight: int | None = None

    def __post_init__(self) -> None:
        _check(self)
        if self.initial_delay_ms > self.max_delay_ms:
            raise ConfigError(
                f'resilience: initial_delay_ms cannot be {self.initial_delay_ms!r}',
                hint=f'it is at most max_delay_ms, {self.max_delay_ms!r}',
            )


@dataclass(frozen=True)
class CircuitBreakerConfig:
    """After `failure_threshold` failures in a row nothing is tried for `recovery_ms`; then one try at a time."""

    enabled: bool = True
    failure_threshold: int = 5
    recovery_ms: float = 30_000

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class ResilienceConfig:
    """The key `resilience` of a connection: `{'retry': {...}, 'back_pressure': {...}, 'circuit_breaker': {...}}`.

    Without `retry` a plain load is tried once, and a stream goes on trying for ever. Without `circuit_breaker` there is
    none.
    """

    retry: RetryConfig | None = None
    back_pressure: BackPressureConfig = BackPressureConfig()
    circuit_breaker: CircuitBreakerConfig = CircuitBreakerConfig(enabled=False)

    @classmethod
    def from_config(cls, config: object) -> ResilienceConfig:
        """From a preset's name (`production`, `patient`, `off`), a mapping (on top of its key `preset`), or None.

        Raises ConfigError.
        """
        if config is None:
            return cls()
        if isinstance(config, cls):
            return config
        if isinstance(config, str):
            if config not in PRESETS:
                raise ConfigError(f'there is no resilience preset {config!r}', hint=f'presets: {", ".join(PRESETS)}')
            return PRESETS[config]
        if not isinstance(config, Mapping):
            raise ConfigError(f'resilience is a mapping or the name of a preset, not {type(config).__name__}')
        unknown = sorted(set(config) - {f.name for f in fields(cls)} - {'preset'})
        if unknown:
            raise ConfigError(
                f'unknown resilience key {unknown[0]!r}', hint='keys: preset, retry, back_pressure, circuit_breaker'
            )
        base = cls.from_config(config.get('preset'))
        return cls(
            retry=base.retry if config.get('retry') is None else _built(base.retry or RetryConfig(), config['retry']),
            back_pressure=_built(base.back_pressure, config.get('back_pressure')),
            circuit_breaker=_built(base.circuit_breaker, config.get('circuit_breaker'), enabled=True),
        )


PRESETS = {
    'off': ResilienceConfig(RetryConfig(enabled=False), BackPressureConfig(enabled=False)),
    'production': ResilienceConfig(RetryConfig(), BackPressureConfig(), CircuitBreakerConfig(enabled=True)),
    'patient': ResilienceConfig(
        RetryConfig(max_retries=None, budget_seconds=3_600), BackPressureConfig(max_delay_ms=60_000)
    ),
}


def _built(base: T, given: object, **defaults: Any) -> T:
    """`base` with what is given on top. What is given at all is meant: `defaults` come between."""
    if given is None or isinstance(given, type(base)):
        return base if given is None else given
    if not isinstance(given, Mapping):
        raise ConfigError(f'resilience: {given!r} is not a mapping')
    known = {f.name: f for f in fields(base)}  # type: ignore[arg-type]  # it is a dataclass
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ConfigError(f'unknown resilience key {unknown[0]!r}', hint=f'keys: {", ".join(sorted(known))}')
    return replace(base, **{**defaults, **given})  # type: ignore[type-var]  # as above


class ExponentialBackoff:
    """The waits between tries."""

    def __init__(self, config: RetryConfig = RetryConfig(), clock: Callable[[], float] = time.monotonic) -> None:
        self.config = config
        self.attempt = 0
        self._clock = clock
        self._started: float | None = None

    def next_delay(self, least: float = 0.0) -> float | None:
        """Seconds to wait before the next try, at least so many; None when there is to be none."""
        config = self.config
        self._started = self._clock() if self._started is None else self._started
        if not config.enabled or (config.max_retries is not None and self.attempt >= config.max_retries):
            return None
        try:
            grown = config.initial_backoff_ms * config.backoff_multiplier**self.attempt
        except OverflowError:
            grown = config.max_backoff_ms
        milliseconds = min(grown, config.max_backoff_ms)
        if config.jitter:
            milliseconds *= random.uniform(0.5, 1.5)  # noqa: S311 - spreads clients, hides nothing
        seconds = max(milliseconds / 1000, least)
        if config.budget_seconds is not None and self._clock() - self._started + seconds > config.budget_seconds:
            return None
        self.attempt += 1
        return seconds

    def reset(self) -> None:
        """Begin anew: there was progress."""
        self.attempt = 0
        self._started = None


def patiently(act: Callable[[], T], config: RetryConfig, sleep: Callable[[float], object] = time.sleep) -> T:
    """What `act` returns, asked again after errors of ours that are `retryable`. Only for acts that change nothing."""
    backoff = ExponentialBackoff(config)
    while True:
        try:
            return act()
        except AmpError as error:
            delay = backoff.next_delay() if error.retryable else None
            if delay is None:
                raise
            sleep(delay)


class AdaptiveRateLimiter:
    """A pause before each request that learns from the answers. May be shared between threads."""

    def __init__(
        self, config: BackPressureConfig = BackPressureConfig(), sleep: Callable[[float], object] = time.sleep
    ) -> None:
        self.config = config
        self._sleep = sleep
        self._delay_ms = float(config.initial_delay_ms)
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Pause as long as the answers so far advise."""
        if self.config.enabled and self._delay_ms > 0:
            self._sleep(self._delay_ms / 1000)

    def record_success(self) -> None:
        """A request went well: the pause shrinks, and below a millisecond it is gone."""
        with self._lock:
            shrunk = self._delay_ms * self.config.recovery_factor
            self._delay_ms = shrunk if shrunk >= 1 else 0.0

    def record_rate_limit(self) -> None:
        """The answer was "too many": the pause doubles, and a second is added."""
        if self.config.adapt_on_429:
            self._slow_down(2.0, 1_000)

    def record_timeout(self) -> None:
        """There was no answer in time: half as long again, and half a second."""
        if self.config.adapt_on_timeout:
            self._slow_down(1.5, 500)

    def record(self, kind: ErrorKind) -> None:
        """A request failed in this way."""
        if kind is ErrorKind.RATE_LIMIT:
            self.record_rate_limit()
        elif kind is ErrorKind.TIMEOUT:
            self.record_timeout()

    def get_current_delay(self) -> int:
        """The pause in milliseconds."""
        return int(self._delay_ms)

    def _slow_down(self, factor: float, more_ms: float) -> None:
        if self.config.enabled:
            with self._lock:
                self._delay_ms = min(self._delay_ms * factor + more_ms, self.config.max_delay_ms)


class CircuitOpenError(DestinationError):
    """It failed too often in a row: nothing is tried until the pause is over."""

    retryable = True


class CircuitBreaker:
    """Closed: all may try. Open: nobody. Half open, after a pause: one, whose outcome decides."""

    def __init__(
        self, config: CircuitBreakerConfig = CircuitBreakerConfig(), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.config = config
        self._clock = clock
        self._failures = 0
        self._opened_at: float | None = None
        self._probing = False
        self._lock = threading.Lock()

    @property
    def state(self) -> str:
        """`closed`, `open` or `half_open`."""
        if self._opened_at is None:
            return 'closed'
        return 'half_open' if self._probing or self._rest() <= 0 else 'open'

    @property
    def rest(self) -> float:
        """Seconds until a try is let through; 0.0 when one is now."""
        with self._lock:
            return 0.0 if not self.config.enabled or self._opened_at is None else max(self._rest(), 0.0)

    def before(self) -> None:
        """Ask before each try. Raises CircuitOpenError."""
        with self._lock:
            if not self.config.enabled or self._opened_at is None:
                return
            rest = self._rest()
            if rest > 0:
                raise CircuitOpenError(
                    f'the destination failed {self._failures} times in a row; nothing is tried for {max(rest, 0):.0f} s',
                    hint='look at the errors before this one; circuit_breaker sets threshold and pause',
                )
            # A probe that ends without a word, because something else failed meanwhile, is followed by another one.
            self._probing, self._opened_at = True, self._clock()

    def record_success(self) -> None:
        """A try went well: closed."""
        with self._lock:
            self._failures, self._opened_at, self._probing = 0, None, False

    def record_failure(self) -> None:
        """A try failed; after too many in a row, or when it was the probe, open."""
        with self._lock:
            self._failures += 1
            if self._probing or self._failures >= self.config.failure_threshold:
                self._opened_at = self._clock()
            self._probing = False

    def _rest(self) -> float:
        opened = self._clock() if self._opened_at is None else self._opened_at
        return opened + self.config.recovery_ms / 1000 - self._clock()


class AdaptiveBatchSize:
    """How many rows to hand over at once: half after a timeout, an eighth more after each success, within bounds."""

    def __init__(self, most: int = 1_000_000, least: int = 1_024) -> None:
        self._most, self._least = most, min(least, most)
        self.rows = most

    def record_timeout(self) -> None:
        """It was too much."""
        self.rows = max(self._least, self.rows // 2)

    def record_success(self) -> None:
        """It was not."""
        self.rows = min(self._most, self.rows + self.rows // 8 + 1)
