"""Logs in to an MCP server with the official client and with fastmcp, and calls a tool with each.

usage: login.py URL TOOL

Both find the authorization server by the metadata of the MCP server, register themselves, and get a code. The browser
that people would see is replaced by a request.
"""

import asyncio
import sys
import urllib.parse

import fastmcp
import httpx2
import mcp
from fastmcp.client.auth import OAuth
from mcp.client.auth import AuthorizationCodeResult, OAuthClientProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import OAuthClientMetadata

CALLBACK = "http://127.0.0.1:9/callback"


class Storage:
    """Forgets everything at the end."""

    def __init__(self):
        self.tokens = self.client = None

    async def get_tokens(self):
        return self.tokens

    async def set_tokens(self, tokens):
        self.tokens = tokens

    async def get_client_info(self):
        return self.client

    async def set_client_info(self, client):
        self.client = client


async def approve(url: str) -> dict:
    """Opens a page of the authorization server, which approves at once; returns what its redirect says."""
    async with httpx2.AsyncClient(trust_env=False) as browser:
        response = await browser.get(url)
    query = urllib.parse.urlsplit(response.headers["location"]).query
    return dict(urllib.parse.parse_qsl(query))


async def with_mcp(url: str, tool: str):
    answer = {}

    async def redirect(url: str):
        answer.update(await approve(url))

    async def callback() -> AuthorizationCodeResult:
        return AuthorizationCodeResult(code=answer["code"], state=answer["state"], iss=answer["iss"])

    metadata = OAuthClientMetadata(redirect_uris=[CALLBACK], client_name="mcp", token_endpoint_auth_method="none")
    auth = OAuthClientProvider(url, metadata, Storage(), redirect, callback)
    async with httpx2.AsyncClient(auth=auth, trust_env=False) as http:
        async with mcp.Client(streamable_http_client(url, http_client=http)) as client:
            result = await client.call_tool(tool, {})
            print("mcp", "failed" if result.is_error else "called", tool)


class Login(OAuth):
    """fastmcp's login without a browser."""

    async def redirect_handler(self, url: str):
        self.answer = await approve(url)

    async def callback_handler(self):
        answer = self.answer
        return AuthorizationCodeResult(code=answer["code"], state=answer["state"], iss=answer["iss"])


async def with_fastmcp(url: str, tool: str):
    async with fastmcp.Client(url, auth=Login(url)) as client:
        result = await client.call_tool(tool, {})
        print("fastmcp", "failed" if result.is_error else "called", tool)


async def main(url: str, tool: str):
    await with_mcp(url, tool)
    await with_fastmcp(url, tool)


asyncio.run(main(*sys.argv[1:]))
