"""Schemas that clients give: what engines leave open of them is told."""

from tests.serve.gateway.conftest import RunningGateway
from tests.serve.gateway.scripted_engine import Connection, ScriptedEngine


def test_what_an_engine_leaves_open_of_a_schema_is_told_to_the_client(
    gateway: RunningGateway, engine: ScriptedEngine
) -> None:
    async def open_format(connection: Connection) -> None:
        body = b'{"choices": []}'
        head = "content-type: application/json\r\nx-everlearn-left-open: a.format, b.pattern"
        await connection.raw(
            f"HTTP/1.1 200 OK\r\n{head}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
        )

    assert "x-everlearn-left-open" not in gateway.chat().headers
    engine.script = open_format
    assert gateway.chat().headers["x-everlearn-left-open"] == "a.format, b.pattern"
