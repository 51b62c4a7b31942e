"""Ray as a `concurrent.futures.Executor`: tasks go to the worker processes that a Ray cluster keeps anyway."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, ParamSpec, TypeVar

from amp.errors import ConfigError, ConnectError, MissingExtraError, redact

__all__ = ['RayExecutor']

P = ParamSpec('P')
T = TypeVar('T')

_IN_THIS_PROCESS = 'local'


class RayExecutor(Executor):
    """Runs what is submitted on the Ray cluster at `address`; a context manager.

    `address` is one that `ray.init` takes (`auto`, `ray://host:10001`); `local` starts a cluster of `workers` processes
    on this machine. One that this process has already joined is used as it is, and stays. A task takes one CPU of the
    cluster. A worker that is lost fails its task, which a backfill then gives out again: Ray itself repeats nothing.
    Raises MissingExtraError without Ray, ConnectError when nothing answers.
    """

    def __init__(self, address: str = 'auto', *, workers: int | None = None) -> None:
        try:
            import ray  # type: ignore[import-not-found, unused-ignore]
        except ImportError as error:
            raise MissingExtraError('ray', 'ray') from error
        self._ray: Any = ray
        self._joined = not ray.is_initialized()
        if self._joined:
            _join(ray, address, workers)
        self._run = ray.remote(max_retries=0)(_call)
        self._closed = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """The future of `fn(*args, **kwargs)`, which run in another process. Raises RuntimeError after `shutdown`."""
        if self._closed:
            raise RuntimeError('this executor is shut down')
        found: Future[T] = self._run.remote(fn, args, kwargs).future()
        return found

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the cluster, if it was joined here; tasks that still run are then ended by it."""
        del wait, cancel_futures
        self._closed = True
        if self._joined:
            self._joined = False
            self._ray.shutdown()


def _join(ray: Any, address: str, workers: int | None) -> None:
    if address == _IN_THIS_PROCESS:
        ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)
        return
    if workers is not None:
        raise ConfigError('workers= is for a cluster that is started here', hint="RayExecutor('local', workers=4)")
    try:
        ray.init(address=address, log_to_driver=False)
    except (ConnectionError, ValueError) as error:
        raise ConnectError(
            f'no Ray cluster answers at {address}: {redact(str(error))}', hint='ray start --head, or check the address'
        ) from error


def _call(fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
    return fn(*args, **kwargs)
