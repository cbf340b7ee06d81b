"""Lists and calls the tools of an MCP server with the official client, and says what it saw, one fact a line.

usage: client.py URL MODE      MODE is what mcp.Client calls it: auto, legacy, or a protocol version
"""

import asyncio
import sys

from mcp import Client


async def main(url: str, mode: str) -> None:
    async with Client(url, mode=mode) as client:
        print("protocol", client.protocol_version)
        for tool in (await client.list_tools()).tools:
            print("tool", tool.name)
        good = await client.call_tool("file_read", {"path": "hello.txt"})
        print("error", good.is_error)
        for content in good.content:
            print("text", getattr(content, "text", content))
        bad = await client.call_tool("file_read", {"path": "../../etc/passwd"})
        print("error", bad.is_error)


asyncio.run(main(*sys.argv[1:]))
