//! TLS of connections to the database.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use fleet_ops::tls::{SecuredStream, StreamTls, StreamTlsFiles, TlsError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::{
    Socket,
    tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream},
};

/// Secures connections to the database as its URL asks for. The files are read for each
/// connection, which are few, so renewed ones need no restart.
#[derive(Debug, Clone)]
pub(super) struct MakeTls(pub(super) StreamTlsFiles);

impl MakeTlsConnect<Socket> for MakeTls {
    type Stream = Secured;
    type TlsConnect = Handshake;
    type Error = TlsError;

    fn make_tls_connect(&mut self, name: &str) -> Result<Handshake, TlsError> {
        Ok(Handshake { tls: self.0.read()?, name: name.to_owned() })
    }
}

/// The handshake of one connection.
#[derive(Debug)]
pub(super) struct Handshake {
    tls: StreamTls,
    name: String,
}

impl TlsConnect<Socket> for Handshake {
    type Stream = Secured;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Secured>> + Send>>;

    fn connect(self, stream: Socket) -> Self::Future {
        Box::pin(async move { Ok(Secured(self.tls.connect(&self.name, stream).await?)) })
    }
}

/// A connection to the database whose handshake has succeeded.
pub(super) struct Secured(SecuredStream<Socket>);

impl TlsStream for Secured {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl AsyncRead for Secured {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Secured {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
