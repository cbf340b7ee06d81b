"""A server of the official library that speaks the HTTP+SSE transport of 2024 and nothing else.

usage: sse_server.py READY_FILE      its address is written to READY_FILE
"""

import os
import socket
import sys

import uvicorn
from mcp.server import MCPServer

server = MCPServer("old")


@server.tool()
def double(number: int) -> str:
    """Doubles a number."""
    return f"twice is {2 * number}"


listener = socket.create_server(("127.0.0.1", 0))
with open(sys.argv[1] + ".partial", "w") as ready:
    ready.write("%s:%d" % listener.getsockname())
os.rename(sys.argv[1] + ".partial", sys.argv[1])
uvicorn.Server(uvicorn.Config(server.sse_app(), log_level="warning")).run(sockets=[listener])
