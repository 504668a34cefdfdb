"""gwt as a peer of tools/bench clients."""

from __future__ import annotations

import gc
import json
import sys
import time
from typing import Any

import gevent
from answers import measure, reply
from control import ECHO
from gevent.fileobject import FileObjectPosix

import gwt

# Deadlines that no machine is too slow for.
PATIENCE = 120.0


class Client:
    """What the bench asks for."""

    def __init__(self, port: str, secure: str, cafile: str) -> None:
        self.urls = {"session": f"https://127.0.0.1:{port}{ECHO}"}
        self.urls["websocket"] = f"ws://127.0.0.1:{port}{ECHO}"
        self.secure = f"https://127.0.0.1:{secure}{ECHO}"
        self.config = gwt.ClientConfig(verify=False, connect_timeout=PATIENCE)
        self.verifying = gwt.ClientConfig(cafile=cafile, connect_timeout=PATIENCE)
        self.held: list[Any] = []

    def establish(self, count: int, at_once: int, verify: bool) -> dict[str, Any]:
        url = self.secure if verify else self.urls["session"]
        config = self.verifying if verify else self.config

        def one_after_another() -> None:
            for _ in range(count // at_once):
                self.held.append(gwt.connect(url, config=config))

        gevent.joinall([gevent.spawn(one_after_another) for _ in range(at_once)], raise_error=True)
        return {}

    def close(self) -> dict[str, Any]:
        held, self.held = self.held, []
        gevent.joinall([gevent.spawn(each.close) for each in held], raise_error=True)
        return {}

    def hold(self, kind: str, count: int) -> dict[str, Any]:
        def one() -> Any:
            return gwt.connect(self.urls[kind], config=self.config)

        jobs = [gevent.spawn(one) for _ in range(count)]
        self.held += [job.get() for job in jobs]
        return {}

    def pooled(self, count: int) -> dict[str, Any]:
        url = self.urls["session"]
        with gwt.PooledClient(config=self.config) as client:
            client.return_session(client.get_session(url))
            began = time.thread_time()
            for _ in range(count):
                client.return_session(client.get_session(url))
            return {"seconds": (time.thread_time() - began) / count}


def main() -> None:
    client = Client(*sys.argv[1:])
    gc.collect()
    gc.freeze()
    for line in FileObjectPosix(sys.stdin.fileno(), "rb", close=False):
        command = json.loads(line)
        what = command.pop("do")
        answer = measure(what)
        reply(getattr(client, what)(**command) if answer is None else answer)


if __name__ == "__main__":
    main()
