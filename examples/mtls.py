r"""Who may do what, by the client's certificate: the notice is for all whom the CA knows to read, for alice to write.

Make a CA, and certificates for the server and for two clients::

    openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=demo-ca -addext keyUsage=critical,keyCertSign \
        -keyout ca.key -out ca.pem
    for name in localhost alice bob; do
        openssl req -x509 -CA ca.pem -CAkey ca.key -newkey rsa:2048 -nodes -days 30 -subj /CN=$name \
            -extensions usr_cert -addext subjectAltName=DNS:$name -keyout $name.key -out $name.pem
    done

Run it beside them. The notice is in the memory of one process: mode thread (the default), without --workers::

    cd examples && python -m stdserve --handler mtls:Notice \
        --tls-cert localhost.pem --tls-key localhost.key --tls-client-ca ca.pem

Try it as alice, as bob, and as nobody, who does not get as far as the handler::

    python -m stdserve.client localhost:10001 --tls-ca ca.pem --tls-cert alice.pem --tls-key alice.key "WRITE tea at 4"
    openssl s_client -quiet -connect localhost:10001 -CAfile ca.pem -cert bob.pem -key bob.key
    python -m stdserve.client localhost:10001 --tls-ca ca.pem READ

Look at the log, which has the subject in the line ``open``, and at ``RIGHTS``, where a subject has its rights.
"""

from __future__ import annotations

from stdserve import LineHandler

#: By the certificate's subject as RFC 4514 writes it; whoever is not named here may READ.
RIGHTS = {"CN=alice": {"READ", "WRITE"}}

notice = ["nothing yet"]


class Notice(LineHandler):
    """READ tells the notice, WRITE replaces it, WHOAMI tells the subject."""

    def line_received(self, line: str) -> str:
        """Do what the line asks for, if the subject may."""
        word, _, text = line.partition(" ")
        if word == "WHOAMI":
            return f"OK {self.peer.subject}"
        if word not in RIGHTS.get(self.peer.subject or "", {"READ"}):
            return f"ERR {self.peer.subject} may not {word}"
        if word == "WRITE":
            notice[0] = text
        return f"OK {notice[0]}"
