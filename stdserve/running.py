"""Running a server in this process or in workers, until a signal: its handlers, its deadline, its status.

For ``runner`` and ``testing``, which open the listeners and the sink.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from types import FrameType

from .errors import OutputError, StartError, StdserveError
from .factory import create_server_of
from .fairness import fair_shares
from .heartbeat import Heartbeat
from .interrupts import STOP_SIGNALS, StopNow, let_stops
from .listeners import close_listeners
from .logs import Event, reopen_logs
from .mixin import ServerMixin
from .options import Options
from .sink import Sink
from .stacks import log_stacks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .certificates import Certificates
    from .hooks import Hooks
    from .metrics import WorkerCounters
    from .observing import Observation
    from .reloading import Reloader
    from .targets import Parts
    from .worker import Link

__all__ = ["GRACE", "run_alone", "run_workers", "status_of"]

_log = logging.getLogger("stdserve")

#: Statuses of a worker: stopped as asked, its output takes no more, it cannot start.
_STOPPED, _FAILED, _UNSTARTED = 0, 1, 3

#: Seconds from one attempt to break off what keeps the main thread to the next: the first may still be on its way out.
INSIST_SECONDS = 0.2

#: Seconds on top of the graceful timeout before a stop that its own loop cannot enforce is broken off.
GRACE = 2.0


def run_alone(
    parts: Parts | None,
    options: Options,
    listeners: Sequence[socket.socket],
    sink: Sink,
    stop_signals: Sequence[int] = STOP_SIGNALS,
    heartbeat: Heartbeat | None = None,
    lifeline: int | None = None,
    counters: WorkerCounters | None = None,
    number: int = 0,
    follow: Callable[[ServerMixin], None] | None = None,
) -> None:
    """Serve in this process until one of ``stop_signals``; raise OutputError when the output takes no more.

    With a ``lifeline``, a descriptor, also until that reads EOF. ``number`` tells workers from each other;
    ``follow(server)`` is called before it serves.
    """
    heartbeat = heartbeat or Heartbeat()
    server = create_server_of(parts, options=options, listeners=listeners, sink=sink, counters=counters)
    server.close_on_stop = True
    if follow is not None:
        follow(server)
    if server.in_steps:  # there may be more sessions than processes usually have descriptors
        from .descriptors import make_room  # here, for few servers want it

        make_room(server.max_conns)
    try:
        with ExitStack() as stack:
            if options.pin:
                from .affinity import on_one_cpu  # here, for few servers want it

                stack.enter_context(on_one_cpu(number))
            # After that, for its thread to be there, too.
            stack.enter_context(fair_shares(getattr(server, "session_threads", None)))
            stack.enter_context(_signal_services(server, heartbeat))
            stack.enter_context(_signals_stop(server, stop_signals, heartbeat.stopping))  # lets them come
            if lifeline is not None:
                _stop_at_the_end_of(lifeline, server)
            server.serve_forever(stack.enter_context(heartbeat.of(server)))
    finally:
        server.server_close()


def run_workers(
    ready: Callable[[], None],
    parts: Parts | None,
    options: Options,
    listeners: Sequence[socket.socket],
    sink: Sink,
    heartbeat: Heartbeat | None = None,
    observation: Observation | None = None,
    follow: Callable[[ServerMixin], None] | None = None,
) -> None:
    """Serve in ``options.workers`` processes, call ``ready()`` when all of them do; raise OutputError, StartError.

    ``follow(server)`` is called in each of them, as ``run_alone`` does.
    """
    from .hooks import Hooks  # here, for the sake of a quick start without workers
    from .supervisor import Supervisor

    heart = heartbeat or Heartbeat()

    def work(link: Link) -> int:
        seconds = min(supervisor.beat_seconds, heart.seconds or math.inf, 1.0 if reloader is not None else math.inf)
        live = partial(_live, link, parts, options, listeners, sink, seconds, observation, follow)
        return _status_of_worker(link, partial(reloader.live, link, live) if reloader is not None else live)

    def serving() -> None:
        ready()
        heart.ready()

    def stopping() -> None:
        heart.stopping()
        close_listeners(listeners)

    told = heart.reloading, heart.ready, heart.beat, heart.seconds
    hooks = Hooks(serving, stopping, *told, partial(_reopen, sink))
    reloader = _reloader(options, lambda: supervisor.reload())
    supervisor = Supervisor(
        work,
        options.workers or 1,
        patience=options.graceful_timeout + GRACE,
        timeout=options.worker_timeout,
        fatal=(_FAILED,),
        unstarted=_UNSTARTED,
        hooks=_hooked(hooks, observation, reloader),
    )
    with nullcontext() if observation is None else observation.beside(supervisor.leave), reloader or nullcontext():
        status = supervisor.run()
    if sink.error or status:
        raise sink.error or StartError(f"a worker could not start: {supervisor.reason}")


def _reloader(options: Options, reload: Callable[[], None]) -> Reloader | None:
    if not options.reload:
        return None
    from .reloading import Reloader  # here, for it is for development

    return Reloader(reload)


def _hooked(hooks: Hooks, *others: Observation | Reloader | None) -> Hooks:
    for other in others:
        hooks = other.hooked(hooks) if other is not None else hooks
    return hooks


def _status_of_worker(link: Link, live: Callable[[], None]) -> int:
    """Be a worker, and return the status it ends with; ``link`` hears why it cannot be one."""
    try:
        live()
    except OutputError:
        return _FAILED  # the sink, which the processes share, tells the parent why
    except StdserveError as error:
        link.explain(str(error))
        return _UNSTARTED
    return _STOPPED


def _live(
    link: Link,
    parts: Parts | None,
    options: Options,
    listeners: Sequence[socket.socket],
    sink: Sink,
    beat_seconds: float,
    observation: Observation | None,
    follow: Callable[[ServerMixin], None] | None,
) -> None:
    """Be a worker; after a reload, read all files again that the options name."""
    if link.generation:
        options = replace(options)
    options.load()
    if options.foreign:
        from .loading import load_parts  # here, for what is ours needs none
        from .targets import Parts

        parts = load_parts(options, parts or Parts())
    most = options.max_sessions
    if most is not None:
        import random  # here, for few servers need it

        most += random.randint(0, options.max_sessions_jitter)
    heartbeat = Heartbeat(link.beat, link.beat, beat_seconds, stopping=link.leave, spent=link.spent, most=most)
    counters = observation.enter(link.number, heartbeat) if observation is not None else None
    # A worker leaves SIGINT alone: Ctrl-C reaches it too, and would be the first of two signals to stop.
    told = (signal.SIGTERM,), heartbeat, link.lifeline, counters, link.number
    run_alone(parts, options, listeners, sink, *told, follow=follow)


def status_of(run: Callable[..., None], *arguments: Any) -> int:
    """Run a server in a process of its own and return the status it ends with."""
    try:
        run(*arguments)
    except OutputError:
        return _FAILED  # the sink, which the processes share, tells the parent why
    except StdserveError as error:
        _log.error(Event("error", str(error)))
        return _UNSTARTED
    return _STOPPED


@contextmanager
def _signals_stop(server: ServerMixin, stop_signals: Sequence[int], stopping: Callable[[], None]) -> Iterator[None]:
    """Let signals stop ``server``: the first asks, the second and the alarm after the deadline insist."""
    asked, broken_off = False, -INSIST_SECONDS

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal asked, broken_off
        server.request_stop(now=asked)
        if asked:
            if server.occupied and time.monotonic() - broken_off >= INSIST_SECONDS:
                broken_off = time.monotonic()
                raise StopNow
            return
        asked = True
        stopping()
        # A handler that keeps the main thread (mode single) keeps the accept loop from seeing the deadline.
        if hasattr(signal, "setitimer"):  # pragma: no branch - Windows has no alarm
            before[signal.SIGALRM] = signal.signal(signal.SIGALRM, stop)
            signal.setitimer(signal.ITIMER_REAL, server.options.graceful_timeout + GRACE)

    before = {number: signal.signal(number, stop) for number in stop_signals}
    try:
        with _signals_wake(server, stop_signals):
            let_stops()
            yield
    finally:
        asked, armed = True, asked  # one that comes while all is put back sets no alarm any more
        if armed and hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _reload(certificates: Certificates, heartbeat: Heartbeat, signum: int, frame: FrameType | None) -> None:
    heartbeat.reloading()
    certificates.reload()
    heartbeat.ready()


def _reopen(sink: Sink) -> None:
    sink.reopen()
    reopen_logs()
    _log.debug(Event("reopened", f"files of {os.getpid()}"))


@contextmanager
def _on_signal(name: str, handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Have ``handle`` called for the signal ``name`` for the length of the block, on a system that has it."""
    number = getattr(signal, name, None)
    if number is None:  # pragma: no cover - Windows has few
        yield
        return
    before = signal.signal(number, handle)
    try:
        yield
    finally:
        signal.signal(number, before)


@contextmanager
def _signal_services(server: ServerMixin, heartbeat: Heartbeat) -> Iterator[None]:
    """Let SIGHUP read the certificates again, SIGUSR1 show all stacks, SIGUSR2 open rotated files again.

    Without certificates, SIGHUP means the end of the terminal, as ever. Forked sessions are told, too.
    """

    def show(signum: int, frame: FrameType | None) -> None:
        log_stacks(signum, frame)
        server.signal_sessions(signum)

    def reopen(signum: int, frame: FrameType | None) -> None:
        _reopen(server.sink)
        server.signal_sessions(signum)

    with ExitStack() as handlers:
        if (certificates := server.options.certificates) is not None:
            handlers.enter_context(_on_signal("SIGHUP", partial(_reload, certificates, heartbeat)))
        handlers.enter_context(_on_signal("SIGUSR1", show))
        handlers.enter_context(_on_signal("SIGUSR2", reopen))
        yield


def _stop_at_the_end_of(lifeline: int, server: ServerMixin) -> None:
    """See that ``server`` is told to stop, as by SIGTERM, when ``lifeline`` reads EOF: its supervisor has gone.

    A thread can tell also a main thread that is stuck in a hook or kept by a session; where sessions are forked there
    must be none, and the accept loop looks itself.
    """

    def stop() -> None:
        _log.error(Event("error", f"the supervisor has gone; worker {os.getpid()} ends"))
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    def notice() -> None:
        server.waiter.unwatch(lifeline)
        stop()

    def wait() -> None:
        os.read(lifeline, 1)
        stop()

    if server.forks:
        server.waiter.watch(lifeline, notice)
    else:
        threading.Thread(target=wait, name="stdserve lifeline", daemon=True).start()


@contextmanager
def _signals_wake(server: ServerMixin, stop_signals: Sequence[int]) -> Iterator[None]:
    """Let no signal be slept through: one that comes just before a wait is otherwise noticed after it only.

    The accept loop has a descriptor for that. Where sessions keep the main thread, another thread listens in its
    place and ends their input, so that the main thread gets to run the signal's handler.
    """
    if not server.inline:
        before = signal.set_wakeup_fd(server.wakeup_fd, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def listen() -> None:
        while came := reader.recv(1):
            if came[0] in stop_signals:
                server.request_stop()

    listener = threading.Thread(target=listen, name="stdserve signals", daemon=True)
    with reader:
        listener.start()
        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            writer.close()
            listener.join()
