"""The five servers of the lecture, as it prints them, to be run as processes of their own.

The programs are the lecture's, statement for statement; they are what stdserve is measured against. Edited are only
- the port: 0 for 10001, and the real one is told on stderr, so that tests may run beside each other;
- the prose: comments and greetings are gone, the other messages are in English;
- in the last one, that processes start by fork: the default on Linux when the lecture was held, until Python 3.14.
They run with ``python -u``, so that what they print is seen when it is printed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator

from processes import ServerProcess

#: One client, then the end.
ONE_CLIENT = """
import socket, sys

sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
sock.bind(('127.0.0.1', 0))
sock.listen(socket.SOMAXCONN)
print('listening on 127.0.0.1:%d (lecture)' % sock.getsockname()[1], file=sys.stderr)

conn, addr = sock.accept()
print('connection from:', addr)

while True:
    data = conn.recv(1024)
    if not data.decode('utf8').strip() or 'exit' in data.decode('utf8'):
        break
    print(data.decode('utf8'), end='')

conn.close()
sock.close()
"""

#: Context managers, one client after the other.
ONE_BY_ONE = """
import socket, sys

with socket.socket() as sock:
    sock.bind(('', 0))
    sock.listen()
    print('listening on 127.0.0.1:%d (lecture)' % sock.getsockname()[1], file=sys.stderr)

    while True:
        print('waiting for a connection...')
        conn, addr = sock.accept()
        print('connection from:', addr)

        with conn:
            while True:
                data = conn.recv(1024).decode('utf8')
                if not data.strip() or 'exit' in data:
                    break
                print(data)
        print('connection closed')
"""

#: A read timeout of five seconds.
READ_TIMEOUT = """
import socket, sys

with socket.socket() as sock:
    sock.bind(('', 0))
    sock.listen()
    print('listening on 127.0.0.1:%d (lecture)' % sock.getsockname()[1], file=sys.stderr)

    while True:
        print('waiting for a connection')
        conn, addr = sock.accept()
        conn.settimeout(5)
        print('connection from:', addr, 'timeout:', conn.gettimeout())

        with conn:
            while True:
                try:
                    data = conn.recv(1024).decode('utf8')
                except socket.timeout:
                    print('Close connection by timeout')
                    break

                if not data.strip():
                    break

                print(data)

        print('connection closed')
"""

#: A thread for each client.
THREADS = """
import socket, sys
import threading

def process_request(conn, addr):
    with conn:
        while True:
            data = conn.recv(1024).decode('utf8')
            if not data.strip():
                break
            print(data, end='')


with socket.socket() as sock:
    sock.bind(('', 0))
    sock.listen()
    print('listening on 127.0.0.1:%d (lecture)' % sock.getsockname()[1], file=sys.stderr)

    while True:
        print('waiting for a connection')
        conn, addr = sock.accept()
        print('connection from:', addr)
        th = threading.Thread(target=process_request, args=(conn, addr,))
        th.start()
"""

#: Three processes, a thread for each client in each of them: so it says.
PROCESSES_AND_THREADS = """
import os
import socket, sys
import threading
import multiprocessing


def process_request(conn, addr):
    with conn:
        while True:
            data = conn.recv(1024).decode('utf8')
            if not data.strip():
                break
            print(data, end='')

def worker(sock):
    while True:
        print('waiting for a connection. PID:', os.getpid())
        conn, addr = sock.accept()
        print('connection from:', addr)
        th = threading.Thread(target=process_request, args=(conn, addr,))
        th.start()


multiprocessing.set_start_method('fork')
with socket.socket() as sock:
    sock.bind(('', 0))
    sock.listen()
    print('listening on 127.0.0.1:%d (lecture)' % sock.getsockname()[1], file=sys.stderr)

    workers_list = [multiprocessing.Process(target=worker, args=(sock,)) for _ in range(3)]

    for w in workers_list:
        w.start()
        w.join()
"""


@contextlib.contextmanager
def lecture(name: str) -> Iterator[ServerProcess]:
    """Run one of the programs, by its name in this module, for the time of the block.

    Its output is UTF-8 whatever the locale. It is ended with its process group, since it leaves its children behind.
    """
    command = (sys.executable, "-u", "-c", globals()[name])
    utf8 = {"PYTHONIOENCODING": "utf-8"}
    with ServerProcess(port=None, command=command, env=utf8, start_new_session=True) as program:
        try:
            yield program
        finally:
            # Gone already, or (on macOS) not reaped yet.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(program.pid, signal.SIGKILL)
