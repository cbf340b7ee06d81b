"""Calls a tool many times with one of the client libraries, each request on a connection of its own, and says how many
calls were answered. The first failure ends it.

usage: balanced.py URL CLIENT CALLS [TOOL ARGUMENTS EXPECTED]

CLIENT is mcp, mcp-legacy, fastmcp or langchain; ARGUMENTS are JSON; EXPECTED is a part of the answer.
"""

import asyncio
import json
import sys
import time

# Calls under way at once. Sessions are opened by so many tasks too.
WORKERS = 8
TOOL, ARGUMENTS, EXPECTED = sys.argv[4:] or ("file_read", '{"path": "hello.txt"}', "hello, fleet")
ARGUMENTS = json.loads(ARGUMENTS)


def unpooled(library):
    """A factory of HTTP clients that keep no connection: a balancer sees every request."""

    def factory(headers=None, timeout=None, auth=None, **_):
        limits = library.Limits(max_keepalive_connections=0)
        timeout = timeout or library.Timeout(60)
        return library.AsyncClient(headers=headers, timeout=timeout, auth=auth, limits=limits)

    return factory


def check(text):
    assert EXPECTED in text, text


async def official(url, calls, mode):
    import httpx2
    from mcp import Client
    from mcp.client.streamable_http import streamable_http_client

    async with unpooled(httpx2)() as http:
        async with Client(streamable_http_client(url, http_client=http), mode=mode) as client:
            assert any(tool.name == TOOL for tool in (await client.list_tools()).tools)

            async def call():
                result = await client.call_tool(TOOL, ARGUMENTS)
                assert not result.is_error, result
                check(str(result.content))

            await many(call, calls)


async def fastmcp(url, calls):
    import httpx2
    from fastmcp import Client
    from fastmcp.client.transports import StreamableHttpTransport

    async with Client(StreamableHttpTransport(url, httpx_client_factory=unpooled(httpx2))) as client:
        assert any(tool.name == TOOL for tool in await client.list_tools())

        async def call():
            check(str((await client.call_tool(TOOL, ARGUMENTS)).content))

        await many(call, calls)


async def langchain(url, calls):
    import httpx
    from langchain_mcp_adapters.client import MultiServerMCPClient

    connection = {"transport": "streamable_http", "url": url, "httpx_client_factory": unpooled(httpx)}
    tools = await MultiServerMCPClient({"fleet": connection}).get_tools()
    tool = next(tool for tool in tools if tool.name == TOOL)

    async def call():
        check(str(await tool.ainvoke(ARGUMENTS)))

    await many(call, calls)


async def many(call, calls):
    left = iter(range(calls))

    async def work():
        for _ in left:
            await call()

    await asyncio.gather(*(work() for _ in range(WORKERS)))


def main(url, client, calls):
    runs = {
        "mcp": lambda: official(url, calls, "auto"),
        "mcp-legacy": lambda: official(url, calls, "legacy"),
        "fastmcp": lambda: fastmcp(url, calls),
        "langchain": lambda: langchain(url, calls),
    }
    started = time.monotonic()
    asyncio.run(runs[client]())
    print(f"answered {calls} in {time.monotonic() - started:.1f} s")


main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
