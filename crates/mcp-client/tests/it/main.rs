//! The client against servers that behave, and against servers and networks that do not.

mod endpoints;
mod legacy;
mod network;
mod outcomes;
mod rmcp_server;
mod support;
