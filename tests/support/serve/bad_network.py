"""A TCP proxy whose network is as bad as a test says: it waits, trickles, hangs up, or never does."""

import asyncio
import threading
from contextlib import suppress


class BadNetwork:
    """Listens on a port of its own before `port`; its faults may be changed between connections."""

    def __init__(self, port: int, host: str = "127.0.0.1", listen: int = 0) -> None:
        self.latency_s = 0.0
        self.bytes_per_s: float | None = None
        self.resets_after_bytes: int | None = None
        self.closes = True
        self.connections = 0
        self._target = port
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._server = self._run(asyncio.start_server(self._serve, host, listen))
        self.port: int = self._server.sockets[0].getsockname()[1]

    def heal(self) -> None:
        self.latency_s, self.bytes_per_s, self.resets_after_bytes, self.closes = 0.0, None, None, True

    def stop(self) -> None:
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _end(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._target)
        onwards = asyncio.create_task(self._pass(reader, there_writer, back=False))
        with suppress(ConnectionError, asyncio.CancelledError):
            await self._pass(there_reader, writer, back=True)
        onwards.cancel()
        there_writer.close()
        if self.closes:
            writer.close()
        else:
            while await reader.read(65536):  # until the client has had enough
                pass
            writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, back: bool) -> None:
        passed = 0
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        receiving = asyncio.create_task(self._receive(reader, under_way))
        try:
            with suppress(ConnectionError):
                while True:
                    due, data = await under_way.get()
                    if not data:
                        break
                    await asyncio.sleep(max(0.0, due - self._loop.time()))
                    while back and self.bytes_per_s is not None and data:
                        writer.write(data[:1])
                        data = data[1:]
                        await asyncio.sleep(1 / self.bytes_per_s)
                    passed += len(data)
                    if back and self.resets_after_bytes is not None and passed > self.resets_after_bytes:
                        writer.transport.abort()
                        return
                    writer.write(data)
                    await writer.drain()
        finally:
            receiving.cancel()

    async def _receive(
        self, reader: asyncio.StreamReader, under_way: asyncio.Queue[tuple[float, bytes]]
    ) -> None:
        """Each piece is late by the latency from when it came, however many are under way; the end is empty."""
        data = b"begin"
        while data:
            try:
                data = await reader.read(65536)
            except ConnectionError:
                data = b""
            under_way.put_nowait((self._loop.time() + self.latency_s, data))
