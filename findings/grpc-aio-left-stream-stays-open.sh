#!/bin/sh
# A server stream of grpc.aio that is left (`break`, an exception, never iterated) is not
# cancelled, even when nothing refers to the call any more, until its channel is closed.
#
# grpcio 1.85.1, Python 3.11. The synchronous client cancels such a call at once, when its last
# reference goes; `grpc.aio.Call.__del__` would cancel it, too, but is never called: calls refer
# to themselves (by the task that sends the request, and the generator behind `async for`) while
# they are open. A server's handler, and whatever it holds, lives on. What helps is `cancel()`
# in a `finally`, or a wrapper whose own `__del__` cancels.
#
# Seen:
#   sync: left by break, handler ended: True
#   aio: left by break, handler ended: False, after gc.collect(): False
#   aio: never iterated, handler ended: False, after gc.collect(): False
#   aio: after channel.close(): True
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check grpcio==1.85.1
"$folder/venv/bin/python" - <<'PYTHON'
import asyncio
import gc
import sys
import threading

import grpc

ended = threading.Semaphore(0)


async def endless(request, context):
    try:
        await context.write(b"one")
        await asyncio.sleep(600)
    finally:
        ended.release()


class Handler(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_stream_rpc_method_handler(endless)


async def has_ended(seconds=2.0):
    return await asyncio.to_thread(ended.acquire, True, seconds)


def left_sync(address):
    channel = grpc.insecure_channel(address)
    for _ in channel.unary_stream("/a/b")(b""):
        break
    return channel  # still open


async def left_by_break(channel):
    async for _ in channel.unary_stream("/a/b")(b""):
        break


async def never_iterated(channel):
    channel.unary_stream("/a/b")(b"")
    await asyncio.sleep(0.5)  # the request is sent


async def main():
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Handler(),))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()

    channel = await asyncio.to_thread(left_sync, address)
    sync = await has_ended()
    print("sync: left by break, handler ended:", sync)
    channel.close()

    seen = []
    channel = grpc.aio.insecure_channel(address)
    for name, leave in (("left by break", left_by_break), ("never iterated", never_iterated)):
        await leave(channel)
        before = await has_ended()
        gc.collect()
        after = await has_ended()
        seen += [before, after]
        print(f"aio: {name}, handler ended: {before}, after gc.collect(): {after}")
    await channel.close()
    closed = await has_ended()
    print("aio: after channel.close():", closed)
    await server.stop(None)
    return sync and closed and not any(seen)


sys.exit(0 if asyncio.run(main()) else "grpc.aio behaves otherwise by now")
PYTHON
