//! What MCP servers say on the wire, read without IO. Both clients of the workspace use it: the worker's own
//! (`fleet-mcp-client`) and the gateway's (`mcp-server`, on top of rmcp).

pub mod session;
