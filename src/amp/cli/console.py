"""How a command ends: what it says on stderr and the exit code, for every error it can meet."""

from __future__ import annotations

import errno
import functools
import inspect
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Any

import typer

from amp import waiting
from amp.errors import AmpError, redact

__all__ = ['INTERRUPTED', 'OutputError', 'command', 'emit', 'interruptible', 'note', 'paint']

INTERRUPTED = 130
_DESTINATION = 5
_Debug = Annotated[bool, typer.Option('--debug', help='Show the traceback of an error.')]
_HOW_TO_DEBUG = 'run it again with --debug (or AMP_DEBUG=1) for the traceback, and please report it'


class OutputError(Exception):
    """The place for the output refuses it; `str()` is the sentence. Exit code 5."""

    def __init__(self, where: str, cause: OSError) -> None:
        super().__init__(f'cannot write {where}: {cause.strerror or cause}')


def paint(text: str, style: str) -> str:
    """`text` with an ANSI style when stderr is a terminal that wants colours: bold, dim, red, green, yellow, cyan."""
    codes = {'bold': '1', 'dim': '2', 'red': '1;31', 'green': '32', 'yellow': '33', 'cyan': '36'}
    wanted = sys.stderr.isatty() and 'NO_COLOR' not in os.environ and os.environ.get('TERM') != 'dumb'
    return f'\x1b[{codes[style]}m{text}\x1b[0m' if wanted else text


def note(text: str = '') -> None:
    """A line on stderr."""
    print(text, file=sys.stderr, flush=True)


def emit(event: str, **facts: object) -> None:
    """One event of `--json`: a line on stdout."""
    print(json.dumps({'event': event, **facts}, default=str), flush=True)


def command(function: Callable[..., None]) -> Callable[..., None]:
    """A command whose errors become a sentence, a hint and an exit code. Adds `--debug`."""

    @functools.wraps(function)
    def run(*args: Any, debug: bool = False, **options: Any) -> None:
        debug = debug or os.environ.get('AMP_DEBUG', '') not in ('', '0')
        try:
            with waiting.interruptible():
                function(*args, **options)
            sys.stdout.flush()
        except BaseException as error:
            # The one place where every error becomes a sentence; `_report` raises what is not ours.
            if debug and not isinstance(error, (KeyboardInterrupt, typer.Exit)):
                raise
            raise typer.Exit(_report(error, as_events=bool(options.get('as_json')))) from None

    signature = inspect.signature(function, eval_str=True)
    debug = inspect.Parameter('debug', inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_Debug)
    parameters = [*signature.parameters.values(), debug]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _report(error: BaseException, *, as_events: bool) -> int:
    """Say what happened; the exit code. Raises what is not ours to report (usage errors, a wanted exit)."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):
        _drop_stdout()
        return 0
    if isinstance(error, AmpError):
        sentence, hint, code = error.message, error.hint, error.exit_code
    elif isinstance(error, OutputError):
        sentence, hint, code = str(error), _hint_of(error.__cause__), _DESTINATION
    elif isinstance(error, OSError) and error.strerror:
        where = f' {os.fspath(error.filename)!r}' if isinstance(error.filename, (str, bytes, os.PathLike)) else ''
        sentence, hint, code = f'the system refuses{where}: {error.strerror}', _hint_of(error), 1
        _drop_stdout_if_broken()
    elif isinstance(error, Exception) and not type(error).__module__.startswith(('typer', 'click')):
        sentence, hint, code = f'this is a bug in amp: {type(error).__name__}: {error}', _HOW_TO_DEBUG, 1
    else:
        raise error
    sentence = ' '.join(redact(sentence).split())
    if as_events:
        again = isinstance(error, AmpError) and error.retryable
        emit('error', error=sentence, hint=hint, exit_code=code, retryable=again)
    note(f'{paint("error:", "red")} {sentence}')
    if hint:
        note(f'{paint("hint:", "cyan")} {redact(hint)}')
    return code


def _hint_of(error: BaseException | None) -> str | None:
    known = {
        errno.ENOSPC: 'the disk is full: make room or choose another place',
        errno.EROFS: 'the file system is read-only: choose another place',
        errno.EACCES: 'choose a place that you may write to',
        errno.EPERM: 'choose a place that you may write to',
        errno.ENOENT: 'make the folder first',
        errno.EADDRINUSE: 'choose another --port (0 takes a free one)',
    }
    return known.get(error.errno or 0) if isinstance(error, OSError) else None


def _drop_stdout() -> None:
    """Point stdout at nothing, so that the interpreter's last flush cannot fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _drop_stdout_if_broken() -> None:
    try:
        sys.stdout.flush()
    except OSError:
        _drop_stdout()


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """SIGTERM acts like Ctrl-C inside the block: KeyboardInterrupt, so that every `finally` runs. Restored after.

    The event is set as well: Python drops an exception that is raised while a finaliser happens to run, and a stream
    that was given the event ends all the same.
    """
    stop = threading.Event()

    def interrupt(number: int, frame: FrameType | None) -> None:
        stop.set()
        signal.default_int_handler(number, frame)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, interrupt)
    if before[signal.SIGINT] is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stop.is_set():
        raise KeyboardInterrupt
