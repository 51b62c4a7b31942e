"""Jobs: what keeps a dataset up to date, with the statuses that the server gives them."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from amp.devserver.chain import Chain

__all__ = ['TERMINAL', 'Job', 'JobStatus', 'Jobs']


class JobStatus(StrEnum):
    """As they are spelled in the Admin API."""

    SCHEDULED = 'SCHEDULED'
    RUNNING = 'RUNNING'
    COMPLETED = 'COMPLETED'
    STOPPED = 'STOPPED'
    STOP_REQUESTED = 'STOP_REQUESTED'
    STOPPING = 'STOPPING'
    ERROR = 'ERROR'
    FATAL = 'FATAL'
    UNKNOWN = 'UNKNOWN'


TERMINAL = frozenset({JobStatus.COMPLETED, JobStatus.STOPPED, JobStatus.ERROR, JobStatus.FATAL})


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(eq=False)
class Job:
    """The materialization of one revision of a dataset, up to `end` or for ever."""

    id: int
    namespace: str
    name: str
    manifest_hash: str
    derived: bool
    chain: Chain
    stop: Callable[[], None]
    detail: Callable[[], str | None]
    end: int | None = None
    created_at: datetime = field(default_factory=_now)
    updated_at: datetime = field(default_factory=_now)
    _status: JobStatus = JobStatus.SCHEDULED

    @property
    def status(self) -> JobStatus:
        """What it is doing now."""
        if self._status is JobStatus.RUNNING and self.end is not None:
            last = self.chain.snapshot().last
            if last is not None and last >= self.end:
                self.become(JobStatus.COMPLETED)
        return self._status

    def become(self, status: JobStatus) -> None:
        """Note the status; what has ended stays so."""
        if self._status not in TERMINAL and status is not self._status:
            self._status = status
            self.updated_at = _now()


class Jobs:
    """All jobs of a server, by rising id."""

    def __init__(self) -> None:
        self._ids = itertools.count(1)
        self._jobs: dict[int, Job] = {}
        self._lock = threading.Lock()

    def add(self, make: Callable[[int], Job]) -> Job:
        """A new job with the next id."""
        with self._lock:
            job = make(next(self._ids))
            self._jobs[job.id] = job
            return job

    def get(self, job_id: int) -> Job | None:
        """The job of that id."""
        return self._jobs.get(job_id)

    def all(self) -> list[Job]:
        """The latest first."""
        with self._lock:
            return sorted(self._jobs.values(), key=lambda job: -job.id)

    def remove(self, job: Job) -> None:
        """Forget a job."""
        with self._lock:
            self._jobs.pop(job.id, None)

    def stop(self, job: Job) -> None:
        """Stop a job, unless it has ended."""
        if job.status in TERMINAL:
            return
        job.become(JobStatus.STOP_REQUESTED)
        job.become(JobStatus.STOPPING)
        job.stop()
        job.become(JobStatus.STOPPED)
