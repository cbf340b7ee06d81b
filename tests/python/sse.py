"""Lists and calls tools over the HTTP+SSE transport of 2024 with the official client.

usage: sse.py URL
"""

import asyncio
import sys

from mcp import ClientSession
from mcp.client.sse import sse_client


async def main(url: str) -> None:
    async with sse_client(url) as (read, write), ClientSession(read, write) as session:
        print("protocol", (await session.initialize()).protocol_version)
        for tool in (await session.list_tools()).tools:
            print("tool", tool.name)
        result = await session.call_tool("file_read", {"path": "hello.txt"})
        print("error", result.is_error)
        for content in result.content:
            print("text", getattr(content, "text", content))


asyncio.run(main(sys.argv[1]))
