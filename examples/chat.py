"""A chat room: sessions that share state and write to each other, in one process, a thread for each.

Run it in mode thread (the default), without --workers: processes would have a room each::

    cd examples && python -m stdserve --handler chat:Chat

Try it from two terminals or more; the first line is a nickname, ``/quit`` leaves::

    telnet 127.0.0.1 10001

Look at ``tell``: nobody who speaks ever waits for one who listens. Each member has a thread that sends what is in its
outbox; who does not read loses what comes when that is full.
"""

from __future__ import annotations

import threading
from queue import SimpleQueue

from stdserve import EndReason, LineHandler

OUTBOX = 100  # lines

members: dict[str, Chat] = {}
lock = threading.RLock()


def tell(line: str, sender: Chat) -> None:
    """Put a line into the outbox of everyone else."""
    with lock:
        for member in members.values():
            if member is not sender and member.outbox.qsize() < OUTBOX:
                member.outbox.put(line)


class Chat(LineHandler):
    """One member, from the question for a nickname to ``/quit``."""

    obey_exit = False
    nickname = ""

    def connection_made(self) -> None:
        """Ask who it is."""
        self.outbox: SimpleQueue[str | None] = SimpleQueue()
        self.writer = threading.Thread(target=self.empty_outbox, daemon=True)
        self.writer.start()
        self.reply("* your nickname?")

    def empty_outbox(self) -> None:
        """Send what comes into the outbox, until None does."""
        for line in iter(self.outbox.get, None):
            self.reply(line)

    def line_received(self, line: str) -> str | None:
        """Leave, join or speak."""
        if line == "/quit":
            self.close()
        elif not self.nickname:
            return self.join(line)
        elif line := "".join(filter(str.isprintable, line)):  # nobody is to steer other people's terminals
            tell(f"{self.nickname}: {line}", self)
        return None

    def join(self, nickname: str) -> str:
        """Become a member, if the nickname is good and free; return what to say to that."""
        with lock:
            if not nickname.isidentifier() or len(nickname) > 20 or nickname in members:
                return "* a word of up to 20 letters and digits that nobody else has; your nickname?"
            self.nickname, members[nickname] = nickname, self
            tell(f"* {nickname} has come", self)
            return f"* here: {', '.join(members)}"

    def connection_lost(self, reason: EndReason) -> None:
        """Tell the others; wait until the outbox is empty."""
        with lock:
            if members.pop(self.nickname, None):
                tell(f"* {self.nickname} has left", self)
        self.outbox.put(None)
        self.writer.join()
