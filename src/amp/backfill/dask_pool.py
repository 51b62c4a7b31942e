"""Dask as a `concurrent.futures.Executor` whose futures always end, also when an answer was lost or cannot be read."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from amp.errors import ConnectError, MissingExtraError, redact

if TYPE_CHECKING:
    from distributed import Client as DaskClient

__all__ = ['DaskExecutor']

P = ParamSpec('P')
T = TypeVar('T')


class DaskExecutor(Executor):
    """Runs what is submitted on the Dask cluster at `cluster` (`tcp://host:8786`), or that of a `distributed.Client`.

    A context manager; a client that was given stays open. A worker that is lost has its tasks run by others, as Dask
    does; one that is killed again and again fails its task. (Of `client.get_executor()` a task whose answer cannot be
    read never ends.) Raises MissingExtraError without Dask, ConnectError when nothing answers.
    """

    def __init__(self, cluster: str | DaskClient) -> None:
        try:
            from distributed import Client as DaskClient
        except ImportError as error:
            raise MissingExtraError('dask', 'distributed') from error
        self._own: Any = None
        self._client: Any = cluster
        if isinstance(cluster, str):
            try:
                self._client = self._own = DaskClient(cluster)  # type: ignore[no-untyped-call, unused-ignore]
            except (OSError, ValueError) as error:
                raise ConnectError(
                    f'no Dask cluster answers at {redact(cluster)}: {redact(str(error))}', hint='check the address'
                ) from error
        self._closed = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """The future of `fn(*args, **kwargs)`, which runs in a worker. Raises RuntimeError after `shutdown`."""
        if self._closed:
            raise RuntimeError('this executor is shut down')
        asked = self._client.submit(fn, *args, pure=False, **kwargs)
        found: Future[T] = Future()
        found.add_done_callback(lambda _: asked.cancel() if found.cancelled() else None)
        threading.Thread(target=_hand_over, args=(asked, found), name='amp-dask-answer', daemon=True).start()
        return found

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the cluster, if it was joined here."""
        del wait, cancel_futures
        self._closed = True
        if self._own is not None:
            self._own.close()
            self._own = None


def _hand_over(asked: Any, found: Future[Any]) -> None:
    try:
        answer = asked.result()
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is the answer
        if found.set_running_or_notify_cancel():
            found.set_exception(error)
    else:
        if found.set_running_or_notify_cancel():
            found.set_result(answer)
