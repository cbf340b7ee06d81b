"""Uses tools that take long with fastmcp and its tasks extra, as its users do: without knowing of tasks, with a handle, with
questions in the middle, and with a change of mind.

usage: tasks.py URL [OTHER]

OTHER is another replica, which has to know the tasks as well.
"""

import asyncio
import sys

from fastmcp import Client
from fastmcp.client.elicitation import ElicitResult
from fastmcp.exceptions import ToolError
from fastmcp_tasks import call_tool_task
from fastmcp_tasks.client import _send_get


async def elicited(message, response_type, params, context):
    return ElicitResult(action="accept", content={"confirm": True})


async def main(url, other):
    async with Client(url, elicitation_handler=elicited) as client:
        result = await client.call_tool("slow_compute", {"seconds": 1, "label": "plain"})
        assert "plain is computed" in str(result.content), result
        print("a call that takes long looks like any other")

        task = await call_tool_task(client, "slow_compute", {"seconds": 1, "label": "handle"})
        assert (await task.status()).status == "working"
        async with Client(other) as elsewhere:
            seen = await _send_get(elsewhere.session, task.task_id)
            assert seen.status in ("working", "completed"), seen
        assert "handle is computed" in str((await task.result()).content)
        print("a handle is good on every replica")

        try:
            await client.call_tool("failing_job", {})
            raise AssertionError("a tool's error was not raised")
        except ToolError as error:
            assert "always fails" in str(error), error
        try:
            await client.call_tool("protocol_error_job", {})
            raise AssertionError("an error of the protocol was not raised")
        except ToolError as error:
            assert "breaks the protocol" in str(error), error
        print("both sorts of errors arrive")

        result = await client.call_tool("confirm_delete", {"filename": "f"})
        assert "Deleting f: true" in str(result.content), result
        print("a question in the middle is answered")

        task = await call_tool_task(client, "slow_compute", {"seconds": 300, "label": "never"})
        await task.cancel()
        for _ in range(100):
            status = (await task.status()).status
            if status != "working":
                break
            await asyncio.sleep(0.1)
        assert status == "cancelled", status
        print("a task is cancelled")


asyncio.run(main(sys.argv[1], sys.argv[-1]))
