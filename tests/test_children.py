"""Forked children: what is promised to them and to their parent.

Every fork is done in a script of its own: there is one thread, and nobody else's children, signals or descriptors.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pytest
from processes import DEADLINE

from stdserve.children import CRASHED

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")

PREAMBLE = """
import atexit, os, resource, select, signal, socket, sys, time
from stdserve.children import CRASHED, Child, Ends, fork_child, fork_children, ignore_signal

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that started us in the background ignores it

def fork(run, handlers=(), born=lambda child: None):
    return fork_child(run, dict(handlers), born)

def live_on():
    time.sleep(100)
    return 0

def descriptors():
    return sorted(os.listdir("/dev/fd"))

def signal_at_birth(signum):
    "Have the child signalled in its first moment, before any Python code of its own."
    os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signum))

def use_up_descriptors():
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    return limits
"""


def run_script(script: str, *flags: str, before: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own, which has a deadline; ``before`` is a command that starts commands."""
    command = [*before, sys.executable, "-bb", "-W", "error", *flags, "-c", textwrap.dedent(script)]
    # Unbuffered output would hide what becomes of the buffer.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, env=environment)


def run_forking(script: str, *flags: str) -> list[str]:
    """Run a script that forks; return the lines it printed. It must end well and leave nothing on standard error."""
    finished = run_script(PREAMBLE + textwrap.dedent(script), *flags)
    assert (0, "") == (finished.returncode, finished.stderr)
    return finished.stdout.splitlines()


def test_a_child_exits_with_what_its_code_returns() -> None:
    """The parent learns it, and may ask again and again until then."""
    assert ["0 3 255"] == run_forking("""
        print(*(fork(lambda: status).wait(20) for status in (0, 3, 255)))
    """)


def test_a_child_is_written_down_with_its_pid() -> None:
    """Born is called in the parent, once, with the child that fork_child returns; not in the child."""
    assert ["True True"] == run_forking("""
        written, parent = [], os.getpid()
        child = fork(lambda: os.getppid() == parent and not written, born=written.append)
        print(written == [child], child.pid != parent and child.wait(20) == 1)
    """)


@pytest.mark.parametrize(
    ("failing", "error"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("sys.exit(0)", "SystemExit"),
        ("signal.raise_signal(signal.SIGINT)", "KeyboardInterrupt"),
    ],
)
def test_a_child_whose_code_raises_has_crashed(failing: str, error: str) -> None:
    """Whatever it raises, the traceback is logged and the status tells; it never gets out into the parent's code."""
    finished = run_script(
        PREAMBLE
        + textwrap.dedent(f"""
            child = fork(lambda: {failing})
            print("only in the parent", child.wait(20))
        """)
    )

    assert f"only in the parent {CRASHED}\n" == finished.stdout
    assert finished.stderr.startswith("error in child process ")
    assert 1 == finished.stderr.count("Traceback (most recent call last)")
    assert f"\n{error}" in finished.stderr
    assert 70 == CRASHED


def test_nothing_that_a_child_wrote_is_lost() -> None:
    """To a pipe, what print() holds back would go down with os._exit; so would standard error."""
    finished = run_script(
        PREAMBLE
        + textwrap.dedent("""
            sys.stderr = open(2, "w", closefd=False)
            sys.exit(fork(lambda: print("out") or print("err", file=sys.stderr) or 0).wait(20))
        """)
    )

    assert (0, "out\n", "err\n") == (finished.returncode, finished.stdout, finished.stderr)


def test_what_the_parent_had_not_flushed_comes_out_once() -> None:
    """The child holds a copy of the parent's buffer, which is not its to write."""
    assert ["before", "child", "after"] == run_forking("""
        print("before")
        fork(lambda: print("child") or 0).wait(20)
        print("after")
    """)


@pytest.mark.parametrize(
    "spoil",
    [
        "sys.stdout = sys.stderr = None",
        "sys.stdout.close(); sys.stderr.close()",
        "sys.stdout = sys.stderr = open(broken, 'w', closefd=False); print('lost')",
    ],
    ids=["none", "closed", "broken"],
)
def test_streams_that_take_nothing_do_not_change_the_status(spoil: str) -> None:
    """None, closed or broken: the child has ended as it says."""
    assert ["3"] == run_forking(f"""
        reader, broken = os.pipe()
        os.close(reader)

        def run():
            exec({spoil!r})
            return 3

        print(fork(run).wait(20))
    """)


@pytest.mark.parametrize(
    "run", ["lambda: setattr(sys, 'stdout', Odd()) or 3", "lambda: None"], ids=["stream", "status"]
)
def test_a_child_never_returns(run: str) -> None:
    """Neither a stream of somebody else's making nor a status that is none lets it out into the parent's code."""
    finished = run_script(
        PREAMBLE
        + textwrap.dedent(f"""
            class Odd:
                def flush(self):
                    raise RuntimeError("a stream of somebody else's making")

                def write(self, text):
                    pass

            parent = os.getpid()
            try:
                fork({run}).wait(20)
            finally:
                os.write(1, b"parent\\n" if os.getpid() == parent else b"child\\n")
        """)
    )

    assert "parent\n" == finished.stdout


def test_exit_hooks_are_the_parents_alone() -> None:
    """They run once, at the end of the process that registered them."""
    assert ["0", "hook"] == run_forking("""
        atexit.register(print, "hook")
        print(fork(lambda: 0).wait(20), flush=True)
    """)


def test_a_signal_in_a_childs_first_moment_is_its_own() -> None:
    """It waits until the child's handler is in place; the parent's never runs there, nor does the default."""
    assert ["5"] == run_forking("""
        signal.signal(signal.SIGTERM, lambda *_: print("the parent's handler"))
        signal_at_birth(signal.SIGTERM)
        print(fork(live_on, {signal.SIGTERM: lambda *_: os._exit(5)}).wait(20))
    """)


def test_no_signal_reaches_a_child_at_its_end() -> None:
    """Its handler would run in the middle of whatever is done there, and may wait for a lock that is held there."""
    lines = run_forking("""
        class Meets:
            def flush(self):
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGUSR1)
        def run():
            sys.stderr = Meets()
            return 5
        child = fork(run, {signal.SIGTERM: lambda *_: os._exit(6), signal.SIGUSR1: signal.SIG_DFL})
        print(child.wait(100))
    """)
    assert ["5"] == lines


def test_a_childs_handler_may_be_the_default() -> None:
    """The parent's own is undone; how the child ended says so."""
    assert ["-15"] == run_forking("""
        signal.signal(signal.SIGTERM, lambda *_: print("the parent's handler"))
        signal_at_birth(signal.SIGTERM)
        print(fork(live_on, {signal.SIGTERM: signal.SIG_DFL}).wait(20))
    """)


def test_no_handler_of_the_parent_finds_a_child_that_is_not_written_down() -> None:
    """A signal that comes right after the fork waits until born has returned."""
    assert ["['forked', 'born', 'signal']"] == run_forking("""
        told = []
        signal.signal(signal.SIGTERM, lambda *_: told.append("signal"))
        os.register_at_fork(after_in_parent=lambda: told.append("forked") or os.kill(os.getpid(), signal.SIGTERM))
        fork(lambda: 0, born=lambda child: told.append("born")).wait(20)
        print(told)
    """)


def test_both_sides_have_the_signal_mask_of_before() -> None:
    """Signals are held during the fork, not after; what the caller had blocked stays so."""
    assert ["True", "True"] == run_forking("""
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])

        def masked():
            return signal.pthread_sigmask(signal.SIG_BLOCK, []) == {signal.SIGUSR2}

        print(fork(masked).wait(20) == 1)
        print(masked())
    """)


def test_the_mask_is_back_after_born_has_failed() -> None:
    """What born raises gets out, and signals work as before."""
    assert ["failed set()"] == run_forking("""
        def born(child):
            raise OSError("failed")

        try:
            fork(lambda: 0, born=born)
        except OSError as error:
            print(error, signal.pthread_sigmask(signal.SIG_BLOCK, []))
    """)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="user ids are switched as Linux does it")
def test_no_child_to_be_had_is_an_oserror() -> None:
    """A real refusal by the system: nothing is written down, and signals work as before."""
    assert ["BlockingIOError [] set()"] == run_forking("""
        written = []
        if os.getuid() == 0:  # the limit does not hold root
            os.setresuid(65534, 65534, 0)
        resource.setrlimit(resource.RLIMIT_NPROC, (0, resource.getrlimit(resource.RLIMIT_NPROC)[1]))
        try:
            fork(lambda: 0, born=written.append)
        except OSError as error:
            print(type(error).__name__, written, signal.pthread_sigmask(signal.SIG_BLOCK, []))
        os.seteuid(os.getresuid()[2])
    """)


def test_children_that_are_forked_in_a_row_know_whose_they_are() -> None:
    """Each runs with its own; all are written down when the last one is forked, before any signal is handled."""
    assert ["[3, 4, 5]", "[('a', 0), ('b', 1), ('c', 2)]"] == run_forking("""
        begun, forked, written = [], [], []
        os.register_at_fork(after_in_parent=lambda: forked.append(len(written)))
        statuses = {"a": 3, "b": 4, "c": 5}
        def run(name):
            return statuses[name] if begun == [name] else 1
        fork_children(run, list(statuses), {}, lambda *child: written.append(child), begun.append)
        print([child.wait(20) for _, child in written])
        print([(name, at) for at, (name, _) in enumerate(written) if forked == [0, 0, 0]])
    """)


def test_what_a_child_begins_with_is_done_before_it_gets_a_signal() -> None:
    """So that its handlers find it."""
    assert ["5"] == run_forking("""
        began = []
        signal_at_birth(signal.SIGTERM)
        def begin(status):
            time.sleep(0.01)
            began.append(status)
        children = []
        handlers = {signal.SIGTERM: lambda *_: os._exit(began[0])}
        fork_children(lambda _: live_on(), [5], handlers, lambda _, child: children.append(child), begin)
        print(children[0].wait(20))
    """)


def test_children_before_one_that_cannot_be_forked_are_written_down() -> None:
    """The error tells of the one; they live."""
    assert ["refused", "[1, 2]", "[0, 0]"] == run_forking("""
        fork, written = os.fork, []
        def refusing():
            if len(asked := forks) == 2:
                raise BlockingIOError("refused")
            asked.append(1)
            return fork()
        forks = []
        os.fork = refusing
        try:
            fork_children(lambda _: 0, [1, 2, 3, 4], {}, lambda *child: written.append(child))
        except BlockingIOError as error:
            print(error)
        print([number for number, _ in written])
        print([child.wait(20) for _, child in written])
    """)


@pytest.mark.parametrize("lacking", ["", "del os.pidfd_open"], ids=["pidfd", "no_pidfd"])
def test_all_ends_are_told_in_one_place(lacking: str) -> None:
    """Each once, and by a descriptor that is readable, where there is such a thing; a child that runs has none."""
    assert ["0 3 True", "[]", "True"] == run_forking(f"""
        {lacking}
        before = descriptors()
        ends = Ends()
        children = [fork(lambda: 0), fork(lambda: 3), fork(live_on)]
        for child in children:
            ends.watch(child)
        told = []
        deadline = time.monotonic() + 20
        while len(told) < 2 and time.monotonic() < deadline:
            if not ends.polled:
                select.select([ends], [], [], 20)
            told += ends.take()
        statuses = dict((child.pid, status) for child, status in told)
        print(statuses[children[0].pid], statuses[children[1].pid], len(told) == 2)
        print(ends.take())
        children[2].kill(signal.SIGKILL)
        children[2].wait(20)
        ends.close()
        print(descriptors() == before)
    """)


def test_a_childs_signals_do_not_wake_the_parent() -> None:
    """An event loop in the parent has its wake-up descriptor to itself."""
    assert ["0 []"] == run_forking("""
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        signal.set_wakeup_fd(writer.fileno())
        status = fork(lambda: signal.raise_signal(signal.SIGTERM) or 0, {signal.SIGTERM: ignore_signal}).wait(20)
        print(status, select.select([reader], [], [], 0)[0])
        signal.set_wakeup_fd(-1)
        reader.close()
        writer.close()
    """)


def test_a_child_can_be_forked_from_any_thread() -> None:
    """As where a server runs in a thread of a test: the thread that forks is the child's main thread."""
    assert ["5"] == run_forking(
        """
        import threading

        def serve():
            print(fork(live_on, {signal.SIGTERM: lambda *_: os._exit(5)}).wait(20))

        signal_at_birth(signal.SIGTERM)
        thread = threading.Thread(target=serve)
        thread.start()
        thread.join()
        """,
        *("-W", "ignore::DeprecationWarning"),
    )


@pytest.mark.parametrize("lacking", ["", "limits = use_up_descriptors()"], ids=["pidfd", "no_pidfd"])
def test_a_running_child_has_no_status_until_it_is_killed(lacking: str) -> None:
    """To reap does not wait, to wait has a deadline; then the signal is the status, with or without a descriptor."""
    assert ["None", "True None", "-9 True", "True"] == run_forking(f"""
        before = descriptors()
        {lacking}
        child = fork(live_on)
        if {bool(lacking)}:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        print(child.reap())
        start = time.monotonic()
        status = child.wait(0.1)
        print(0.1 <= time.monotonic() - start < 10, status)
        child.kill(signal.SIGKILL)
        start = time.monotonic()
        print(child.wait(20), time.monotonic() - start < 10)
        print(descriptors() == before)
    """)


def test_without_a_descriptor_there_is_none() -> None:
    """With none free for it, the child is a child all the same, and its end is found by asking."""
    assert ["None 3"] == run_forking("""
        limits = use_up_descriptors()
        child = fork(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limits) or 3)
        print(child.fd, child.wait(20))
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    """)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="pidfd_open is Linux's")
def test_the_descriptor_is_readable_once_the_child_has_ended() -> None:
    """Not before, and it is closed when the child is reaped."""
    assert ["[]", "True", "0", "True"] == run_forking("""
        before = descriptors()
        reader, writer = os.pipe()
        child = fork(lambda: len(os.read(reader, 1)) - 1)
        print(select.select([child.fd], [], [], 0.1)[0])
        os.write(writer, b"x")
        print(select.select([child.fd], [], [], 20)[0] == [child.fd])
        print(child.reap())
        os.close(reader)
        os.close(writer)
        print(descriptors() == before)
    """)


def test_an_ended_child_may_be_killed() -> None:
    """Nothing happens, and its status is what it was."""
    assert ["3"] == run_forking("""
        reader, writer = os.pipe()
        child = fork(lambda: 3)
        os.close(writer)
        os.read(reader, 1)
        child.kill(signal.SIGKILL)
        print(child.wait(20))
    """)


@pytest.mark.parametrize("thief", ["signal.signal(signal.SIGCHLD, signal.SIG_IGN)", "steal = True"])
def test_a_child_that_someone_else_reaped_has_ended_somehow(thief: str) -> None:
    """Where SIGCHLD is ignored, or all children are waited for, the status is lost: 0, and nothing is left open."""
    assert ["0 True"] == run_forking(f"""
        steal = False
        {thief}
        before = descriptors()
        reader, writer = os.pipe()
        child = fork(lambda: 3)
        os.close(writer)
        os.read(reader, 1)
        if steal:
            os.waitpid(-1, 0)
        status = child.wait(20)
        child.kill(signal.SIGTERM)
        os.close(reader)
        print(status, descriptors() == before)
    """)


def test_an_ignored_signal_is_not_ignored_by_programs_that_are_started() -> None:
    """Unlike SIG_IGN, which a handler's own child process would inherit (execve(2))."""
    assert ["-2 -2", "0 0"] == run_forking("""
        import subprocess

        for handler in (ignore_signal, signal.SIG_IGN):
            signal.signal(signal.SIGINT, handler)
            signal.raise_signal(signal.SIGINT)
            command = ["sh", "-c", "kill -INT $$"]
            print(subprocess.call(command), subprocess.call(command))
    """)


def test_a_full_output_does_not_change_the_status() -> None:
    """What it printed last is lost, and that is all."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")

    assert ["3"] == run_forking("""
        def run():
            os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
            print("lost")
            return 3

        print(fork(run).wait(20))
    """)
