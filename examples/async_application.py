"""An application for each user, written for asyncio, served from greenlets."""

import asyncio

import gevent

import gwt


async def counter(scope, receive, send):
    try:
        total = 0
        while True:
            total += await asyncio.wait_for(receive(), timeout=0.2)
            await asyncio.sleep(0.01)
            await send(f"{total} in all")
    except TimeoutError:
        await send("nothing more")


class Service(gwt.StatelessServer):
    def handle(self):
        for user, number in [("ann", 1), ("bob", 10), ("ann", 2), ("bob", 20)]:
            queue = self.get_or_create_application_instance(user, {"user": user})
            queue.put(number)
        while self.application_instances:
            gevent.sleep(0.01)

    def application_send(self, scope, message):
        print(scope["user"], message)


Service(counter).run()
