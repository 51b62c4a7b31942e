"""Retry, limiter, breaker, batch size, and what an error means for trying again."""

from __future__ import annotations

import math
import socket
from email.message import Message
from enum import Enum
from urllib.error import HTTPError, URLError

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import flight

from amp.errors import ConfigError, ConnectError, DestinationError, QueryError
from amp.streaming.resilience import (
    AdaptiveBatchSize,
    AdaptiveRateLimiter,
    BackPressureConfig,
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitOpenError,
    ErrorClassifier,
    ErrorKind,
    ExponentialBackoff,
    ResilienceConfig,
    RetryConfig,
    patiently,
)

pytestmark = pytest.mark.unit


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


# What an error means


@pytest.mark.parametrize(
    ('text', 'kind'),
    [
        ('Connection timeout occurred', ErrorKind.TIMEOUT),
        ('Operation timed out', ErrorKind.TIMEOUT),
        ('TimeOut', ErrorKind.TIMEOUT),
        ('HTTP 504 Gateway', ErrorKind.TIMEOUT),
        ('HTTP 429 Too Many Requests', ErrorKind.RATE_LIMIT),
        ('Rate limit exceeded', ErrorKind.RATE_LIMIT),
        ('Request throttled', ErrorKind.RATE_LIMIT),
        ('HTTP 503 Service Unavailable', ErrorKind.TRANSIENT),
        ('Connection reset by peer', ErrorKind.TRANSIENT),
        ('Temporary failure in name resolution', ErrorKind.TRANSIENT),
        ('Broken pipe', ErrorKind.TRANSIENT),
        ('deadlock detected', ErrorKind.TRANSIENT),
        ('server closed the connection unexpectedly', ErrorKind.TRANSIENT),
        ('rate_limit_exceeded', ErrorKind.RATE_LIMIT),
        ('Internal Server Error', ErrorKind.TRANSIENT),
        ('Network is unreachable', ErrorKind.TRANSIENT),
        ('no route to host', ErrorKind.TRANSIENT),
        ('HTTP 400 Bad Request', ErrorKind.PERMANENT),
        ('HTTP 401 Unauthorized', ErrorKind.PERMANENT),
        ('block 14290123 has no parent', ErrorKind.PERMANENT),
        ('column "timeout_ms2" does not exist', ErrorKind.PERMANENT),
        ('row 5031 of 50312', ErrorKind.PERMANENT),
        ('SQL syntax error', ErrorKind.PERMANENT),
        ('', ErrorKind.PERMANENT),
        (None, ErrorKind.PERMANENT),
    ],
)
def test_a_text_is_read_by_whole_words(text, kind):
    assert ErrorClassifier.classify(text) is kind
    assert ErrorClassifier.is_transient(text) is kind.is_transient
    if text:
        assert ErrorClassifier.classify(Exception(text)) is kind


def made(name: str, module: str = 'driver', base: type[Exception] = Exception, **attributes: object) -> Exception:
    error = type(name, (base,), {'__module__': module})('connection timeout 429')
    for key, value in attributes.items():
        setattr(error, key, value)
    return error


class Grpc(Enum):
    RESOURCE_EXHAUSTED = 8
    DEADLINE_EXCEEDED = 4
    INVALID_ARGUMENT = 3


@pytest.mark.parametrize(
    ('error', 'kind'),
    [
        (made('X', sqlstate='40P01'), ErrorKind.TRANSIENT),
        (made('X', sqlstate='57014'), ErrorKind.TIMEOUT),
        (made('X', sqlstate='57P01'), ErrorKind.TRANSIENT),
        (made('X', sqlstate='42601'), ErrorKind.PERMANENT),
        (made('X', status_code=429), ErrorKind.RATE_LIMIT),
        (made('X', status_code=404), ErrorKind.PERMANENT),
        (made('X', response=type('R', (), {'status_code': 503})()), ErrorKind.RATE_LIMIT),
        (made('X', response={'Error': {'Code': 'SlowDown'}}), ErrorKind.RATE_LIMIT),
        (OSError('When x: AWS Error NETWORK_CONNECTION during PutObject operation: curl'), ErrorKind.TRANSIENT),
        (OSError('AWS Error UNKNOWN (HTTP status 429) during HeadObject operation: No body'), ErrorKind.RATE_LIMIT),
        (OSError('AWS Error UNKNOWN (HTTP status 400) during HeadObject operation: 503'), ErrorKind.PERMANENT),
        (OSError('AWS Error ACCESS_DENIED during HeadObject operation: connection reset'), ErrorKind.PERMANENT),
        (
            made('X', response={'Error': {'Code': 'Odd'}, 'ResponseMetadata': {'HTTPStatusCode': 500}}),
            ErrorKind.TRANSIENT,
        ),
        (made('X', response={'Error': {'Code': 'NoSuchBucket'}}), ErrorKind.PERMANENT),
        (made('DatabaseError', 'clickhouse_connect.driver.exceptions', code=252), ErrorKind.RATE_LIMIT),
        (made('DatabaseError', 'clickhouse_connect.driver.exceptions', code=60), ErrorKind.PERMANENT),
        (made('BusyLoadingError', 'redis.exceptions'), ErrorKind.TRANSIENT),
        (made('AuthenticationError', 'redis.exceptions'), ErrorKind.PERMANENT),
        (made('ConnectionError', sqlstate='n/a'), ErrorKind.TRANSIENT),
        (made('OfItsOwn', sqlstate='n/a'), ErrorKind.PERMANENT),
        (flight.FlightUnavailableError('x'), ErrorKind.TRANSIENT),
        (flight.FlightCancelledError('x'), ErrorKind.TRANSIENT),
        (flight.FlightTimedOutError('x'), ErrorKind.TIMEOUT),
        (flight.FlightUnauthenticatedError('timeout 429'), ErrorKind.PERMANENT),
        (flight.FlightUnauthorizedError('timeout 429'), ErrorKind.PERMANENT),
        (made('RpcError', 'grpc', code=lambda: Grpc.RESOURCE_EXHAUSTED), ErrorKind.RATE_LIMIT),
        (made('RpcError', 'grpc._channel', code=lambda: Grpc.DEADLINE_EXCEEDED), ErrorKind.TIMEOUT),
        (made('RpcError', 'grpc.aio', code=lambda: Grpc.INVALID_ARGUMENT), ErrorKind.PERMANENT),
        (HTTPError('http://x', 503, 'x', Message(), None), ErrorKind.RATE_LIMIT),
        (HTTPError('http://x', 404, 'timeout', Message(), None), ErrorKind.PERMANENT),
        (URLError(ConnectionRefusedError('x')), ErrorKind.TRANSIENT),
        (URLError('unknown url type'), ErrorKind.PERMANENT),
        (socket.gaierror(socket.EAI_AGAIN, 'x'), ErrorKind.TRANSIENT),
        (DestinationError('x', status=504), ErrorKind.TIMEOUT),
        (made('OfItsOwn'), ErrorKind.PERMANENT),
        (ConnectionResetError('x'), ErrorKind.TRANSIENT),
        (TimeoutError('x'), ErrorKind.TIMEOUT),
        (ValueError('connection timeout'), ErrorKind.PERMANENT),
        (ConnectError('gone'), ErrorKind.TRANSIENT),
        (QueryError('timeout'), ErrorKind.PERMANENT),
    ],
    ids=str,
)
def test_type_and_code_come_before_text(error, kind):
    assert ErrorClassifier.classify(error) is kind


def test_an_error_of_ours_is_what_caused_it():
    error = DestinationError('ClickHouse refused')
    error.__cause__ = made('X', status_code=429)
    assert ErrorClassifier.classify(error) is ErrorKind.RATE_LIMIT
    assert ErrorClassifier.classify(DestinationError('no')) is ErrorKind.PERMANENT


# Waiting


def test_waits_grow_to_their_most_and_end():
    backoff = ExponentialBackoff(RetryConfig(max_retries=4, initial_backoff_ms=100, max_backoff_ms=300, jitter=False))
    assert [backoff.next_delay() for _ in range(5)] == [0.1, 0.2, 0.3, 0.3, None]
    backoff.reset()
    assert backoff.next_delay() == 0.1


@given(st.integers(1, 5_000), st.integers(0, 2_000))
def test_jitter_stays_within_half_and_one_and_a_half(first, attempt):
    backoff = ExponentialBackoff(RetryConfig(max_retries=None, initial_backoff_ms=first, max_backoff_ms=60_000))
    backoff.attempt = attempt
    base = min(first * 2.0 ** min(attempt, 100), 60_000) / 1000
    assert base / 2 <= backoff.next_delay() <= base * 1.5


def test_a_budget_ends_it_as_well():
    clock = Clock()
    config = RetryConfig(
        max_retries=None, initial_backoff_ms=1_000, backoff_multiplier=1, jitter=False, budget_seconds=3
    )
    backoff = ExponentialBackoff(config, clock)
    waits = 0
    while (delay := backoff.next_delay()) is not None:
        clock.sleep(delay)
        waits += 1
    assert waits == 3
    assert ExponentialBackoff(RetryConfig(enabled=False)).next_delay() is None


def test_patience_is_for_errors_that_may_pass():
    answers = [ConnectError('a'), ConnectError('b'), 7]
    clock = Clock()

    def act():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    config = RetryConfig(max_retries=2, initial_backoff_ms=10, jitter=False)
    assert patiently(act, config, clock.sleep) == 7
    assert clock.slept == [0.01, 0.02]
    answers[:] = [QueryError('no'), 7]
    with pytest.raises(QueryError):
        patiently(act, config, clock.sleep)


# Limiter


def limiter(**changes) -> AdaptiveRateLimiter:
    return AdaptiveRateLimiter(BackPressureConfig(**{'initial_delay_ms': 100, 'max_delay_ms': 10_000, **changes}))


def test_the_pause_follows_the_answers():
    found = limiter()
    found.record_rate_limit()
    assert found.get_current_delay() == 1_200
    found.record_success()
    assert found.get_current_delay() == 1_080
    found.record_timeout()
    assert found.get_current_delay() == 2_120
    for _ in range(10):
        found.record(ErrorKind.RATE_LIMIT)
    assert found.get_current_delay() == 10_000
    for _ in range(200):
        found.record_success()
    assert found.get_current_delay() == 0


def test_what_is_switched_off_does_not_move():
    for found, act in (
        (limiter(adapt_on_429=False), 'record_rate_limit'),
        (limiter(adapt_on_timeout=False), 'record_timeout'),
    ):
        getattr(found, act)()
        assert found.get_current_delay() == 100
    clock = Clock()
    AdaptiveRateLimiter(BackPressureConfig(enabled=False, initial_delay_ms=50), clock.sleep).wait()
    assert clock.slept == []
    AdaptiveRateLimiter(BackPressureConfig(initial_delay_ms=50), clock.sleep).wait()
    assert clock.slept == [0.05]


# Breaker


def test_a_breaker_opens_probes_once_and_closes():
    clock = Clock()
    breaker = CircuitBreaker(CircuitBreakerConfig(enabled=True, failure_threshold=2, recovery_ms=1_000), clock)
    breaker.before()
    breaker.record_failure()
    assert breaker.state == 'closed'
    breaker.record_failure()
    assert breaker.state == 'open'
    with pytest.raises(CircuitOpenError) as raised:
        breaker.before()
    assert raised.value.retryable
    clock.sleep(1.1)
    assert breaker.state == 'half_open'
    breaker.before()
    with pytest.raises(CircuitOpenError):
        breaker.before()
    breaker.record_failure()
    assert breaker.state == 'open'
    clock.sleep(1.1)
    breaker.before()
    breaker.record_success()
    assert breaker.state == 'closed'
    breaker.before()


def test_a_probe_that_ends_without_a_word_is_followed_by_another():
    now = [0.0]
    breaker = CircuitBreaker(CircuitBreakerConfig(enabled=True, failure_threshold=1, recovery_ms=1_000), lambda: now[0])
    breaker.record_failure()
    now[0] = 1.0
    breaker.before()
    with pytest.raises(CircuitOpenError):
        breaker.before()
    now[0] = 2.0
    breaker.before()


def test_what_is_made_by_hand_is_on_and_has_the_usual_numbers():
    assert ExponentialBackoff().config == RetryConfig()
    assert AdaptiveRateLimiter().config == BackPressureConfig()
    breaker = CircuitBreaker()
    for _ in range(CircuitBreakerConfig().failure_threshold):
        breaker.before()
        breaker.record_failure()
    with pytest.raises(CircuitOpenError):
        breaker.before()
    assert not ResilienceConfig().circuit_breaker.enabled, 'a connection that does not ask for one has none'


def test_a_breaker_that_is_off_never_opens():
    breaker = CircuitBreaker(CircuitBreakerConfig(enabled=False, failure_threshold=1))
    breaker.record_failure()
    breaker.before()


def test_batches_shrink_and_grow_again_within_bounds():
    size = AdaptiveBatchSize(10_000, 1_000)
    for _ in range(10):
        size.record_timeout()
    assert size.rows == 1_000
    size.record_success()
    assert size.rows == 1_126
    for _ in range(100):
        size.record_success()
    assert size.rows == 10_000


# Configuration


def test_the_key_of_a_connection():
    found = ResilienceConfig.from_config({'retry': {'max_retries': 3}, 'circuit_breaker': {'failure_threshold': 2}})
    assert found.retry == RetryConfig(max_retries=3)
    assert found.circuit_breaker == CircuitBreakerConfig(enabled=True, failure_threshold=2)
    assert ResilienceConfig.from_config(None).retry is None
    assert ResilienceConfig.from_config('production').retry == RetryConfig()
    assert ResilienceConfig.from_config(found) is found


def test_what_is_said_besides_a_preset_is_put_on_top_of_it():
    found = ResilienceConfig.from_config({'preset': 'patient', 'retry': {'max_retries': 9}})
    patient = ResilienceConfig.from_config('patient')
    assert found.retry == RetryConfig(max_retries=9, budget_seconds=3_600)
    assert (found.back_pressure, found.circuit_breaker) == (patient.back_pressure, patient.circuit_breaker)
    off = ResilienceConfig.from_config({'preset': 'production', 'circuit_breaker': {'enabled': False}})
    assert off.circuit_breaker == CircuitBreakerConfig(enabled=False)
    assert off.retry == RetryConfig()
    assert ResilienceConfig.from_config({'retry': {'max_retries': None}}).retry == RetryConfig(max_retries=None)


@pytest.mark.parametrize(
    ('config', 'told'),
    [
        ({'retries': {}}, "unknown resilience key 'retries'"),
        ({'retry': {'tries': 3}}, "unknown resilience key 'tries'"),
        ({'retry': 3}, 'not a mapping'),
        ('wild', "no resilience preset 'wild'"),
        ({'preset': 'wild'}, "no resilience preset 'wild'"),
        ({'retry': {'max_retries': '3'}}, "max_retries cannot be '3'"),
        ({'retry': {'max_retries': -1}}, 'max_retries cannot be -1'),
        ({'retry': {'jitter': 1}}, 'jitter cannot be 1'),
        ({'back_pressure': {'max_delay_ms': None}}, 'max_delay_ms cannot be None'),
        ({'back_pressure': {'recovery_factor': 1.5}}, r'recovery_factor cannot be 1\.5 \(it is a number from 0 to 1\)'),
        ({'back_pressure': {'max_bytes_in_flight': 0}}, 'max_bytes_in_flight cannot be 0 .*whole number of 1 or more'),
        (
            {'back_pressure': {'initial_delay_ms': 10_000}},
            'initial_delay_ms cannot be 10000 .*at most max_delay_ms, 5000',
        ),
        ({'back_pressure': {'max_delay_ms': math.inf}}, 'max_delay_ms cannot be inf .*from 0 to 86400000'),
        ({'retry': {'initial_backoff_ms': math.inf}}, 'initial_backoff_ms cannot be inf .*from 0 to 86400000'),
        ({'retry': {'max_backoff_ms': math.nan}}, 'max_backoff_ms cannot be nan'),
        ({'retry': {'backoff_multiplier': 0.5}}, 'backoff_multiplier cannot be 0.5 .*from 1 to 1000'),
        ({'retry': {'budget_seconds': math.nan}}, 'budget_seconds cannot be nan .*or none'),
        ({'circuit_breaker': {'recovery_ms': math.inf}}, 'recovery_ms cannot be inf'),
        ({'circuit_breaker': {'failure_threshold': 0}}, 'failure_threshold cannot be 0 .*of 1 or more'),
        ({'circuit_breaker': {'failure_threshold': 2.5}}, 'failure_threshold cannot be 2.5 .*whole number'),
        (7, 'a mapping or the name of a preset'),
    ],
)
def test_what_cannot_be_meant_is_refused(config, told):
    with pytest.raises(ConfigError, match=told):
        ResilienceConfig.from_config(config)


def test_nor_is_it_taken_from_a_program():
    with pytest.raises(ConfigError, match='max_backoff_ms'):
        RetryConfig(max_backoff_ms=math.inf)
    with pytest.raises(ConfigError, match='recovery_factor'):
        BackPressureConfig(recovery_factor=1.5)
    with pytest.raises(ConfigError, match='failure_threshold'):
        CircuitBreakerConfig(failure_threshold=-1)


@given(
    st.floats(0, 86_400_000),
    st.floats(0, 86_400_000),
    st.floats(0, 1),
    st.lists(st.sampled_from(['success', 'rate_limit', 'timeout']), max_size=30),
)
def test_a_pause_never_grows_by_success_nor_shrinks_by_a_failure(one, other, factor, answers):
    initial, most = sorted((one, other))
    config = BackPressureConfig(initial_delay_ms=initial, max_delay_ms=most, recovery_factor=factor)
    found = AdaptiveRateLimiter(config)
    for answer in answers:
        before = found.get_current_delay()
        getattr(found, f'record_{answer}')()
        now = found.get_current_delay()
        assert now <= before if answer == 'success' else now >= before
        assert now <= most
