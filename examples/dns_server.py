"""A DNS server for one zone: an application instance for each client, over UDP (RFC 1035)."""

import struct
import sys
from contextlib import suppress

import gwt

NAMES = {"gateway.home": "192.168.1.1", "printer.home": "192.168.1.20"}

HEADER = struct.Struct("!HHHHHH")
RECORD = struct.Struct("!HHHIH4s")
A, INTERNET = 1, 1
NO_ERROR, NO_SUCH_NAME, NOT_IMPLEMENTED = 0, 3, 4


def question_of(query):
    """Return the name that a query asks for, its type and class, and where the question ends."""
    labels, at = [], HEADER.size
    while length := query[at]:
        if length > 63:
            raise ValueError("a question is not compressed")
        labels.append(query[at + 1 : at + 1 + length].decode("ascii").lower())
        at += 1 + length
    return ".".join(labels), *struct.unpack_from("!HH", query, at + 1), at + 5


def answer(query):
    """Return the answer to a query; raises ValueError or so for what is none."""
    number, flags, questions, *_ = HEADER.unpack_from(query)
    if flags & 0x8000:
        raise ValueError("an answer is not answered: it would never end")
    # A response, authoritative; the opcode and "recursion desired" as they were.
    head = 0x8400 | (flags & 0x7900)
    if flags & 0x7800 or questions != 1:
        return HEADER.pack(number, head | NOT_IMPLEMENTED, 0, 0, 0, 0)
    name, kind, family, end = question_of(query)
    address = NAMES.get(name)
    code = NO_ERROR if address else NO_SUCH_NAME
    records = b""
    if address and (kind, family) == (A, INTERNET):
        packed = bytes(map(int, address.split(".")))
        # 0xC00C points to the name in the question.
        records = RECORD.pack(0xC00C, A, INTERNET, 300, 4, packed)
    head = HEADER.pack(number, head | code, 1, bool(records), 0, 0)
    return head + query[HEADER.size : end] + records


def application(scope, receive, send):
    while True:
        query = receive()["data"]
        # What is not DNS is not worth an answer to an address that may be forged.
        with suppress(ValueError, IndexError, struct.error):
            send({"type": "datagram.send", "data": answer(query)})


server = gwt.DatagramApplicationServer(application, sys.argv[1], idle_timeout=10)
server.listen()
print(*server.address, flush=True)
server.run()
