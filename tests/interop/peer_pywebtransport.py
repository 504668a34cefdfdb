"""
pywebtransport as a peer, run by its own interpreter: an echo server, or a client that checks one.

    peer_pywebtransport.py server CERTFILE KEYFILE     prints its port, serves until it is ended
    peer_pywebtransport.py client URL                  prints what it saw, a line each
"""

import asyncio
import contextlib
import socket
import ssl
import sys

import pywebtransport as wt


async def echo_bidirectional(stream):
    await stream.write(data=await stream.read_all(), end_stream=True)


async def serve_session(session):
    await session.accept()
    tasks = set()

    async def bidirectional():
        async for stream in session.incoming_bidirectional_streams():
            tasks.add(asyncio.create_task(echo_bidirectional(stream)))

    async def unidirectional():
        async for stream in session.incoming_unidirectional_streams():
            data = await stream.read_all()
            back = await session.create_unidirectional_stream()
            await back.write(data=data, end_stream=True)

    async def datagrams():
        while True:
            await session.send_datagram(data=await session.read_datagram())

    await asyncio.gather(bidirectional(), unidirectional(), datagrams(), return_exceptions=True)


async def serve(certfile, keyfile):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = wt.ServerConfig(
        certfile=certfile, keyfile=keyfile, bind_host="127.0.0.1", bind_port=port
    )
    tasks = set()

    async def connection(peer):
        async for session in peer.incoming_sessions():
            tasks.add(asyncio.create_task(serve_session(session)))

    async with wt.WebTransportServer(config=config) as server:
        await server.listen()
        print(port, flush=True)
        async for peer in server.incoming_connections():
            tasks.add(asyncio.create_task(connection(peer)))


async def check(url):
    config = wt.ClientConfig(verify_mode=ssl.CERT_NONE)
    async with wt.WebTransportClient(config=config) as client:
        session = await client.connect(url=url)
        stream = await session.create_bidirectional_stream()
        await stream.write(data=bytes(1_000_000), end_stream=True)
        print("bidirectional", len(await stream.read_all()))
        for index in range(60):
            # More than the ten streams that it is allowed at first.
            stream = await session.create_bidirectional_stream()
            await stream.write(data=b"%d" % index, end_stream=True)
            assert await stream.read_all() == b"%d" % index
        print("streams 60")
        material = await session.export_keying_material(label="label", context=b"more", length=48)
        print("keys", material.hex())
        send = await session.create_unidirectional_stream()
        await send.write(data=b"one way", end_stream=True)
        async for back in session.incoming_unidirectional_streams():
            print("unidirectional", (await back.read_all()).decode())
            break
        await session.send_datagram(data=b"datagram")
        print((await session.read_datagram()).decode())
        with contextlib.suppress(wt.WebTransportError):
            await session.close(error_code=55, reason="enough")
        print("closed")


if __name__ == "__main__":
    role, *arguments = sys.argv[1:]
    asyncio.run({"server": serve, "client": check}[role](*arguments))
