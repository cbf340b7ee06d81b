//! Asks a process on this machine whether it is alive. Containers without curl use this as their
//! health check.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    process::ExitCode,
    time::Duration,
};

use crate::tls::{blind_stream, wants_certificate};

/// How long a process may take to answer a health check.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(3);
/// What a process is known to be if it wants a certificate before it answers.
const WANTS_CERTIFICATE: &str = "alive; requests need a client certificate";

/// Checks whether the process that listens at `addr` on this machine is alive. If `addr` is
/// unspecified (`0.0.0.0` or `::`), loopback is used. Returns the response of `/ready`, or a
/// sentence if the process speaks to clients with a certificate only.
///
/// Over TLS, the certificate is not verified: what is asked and answered is no secret, and the port
/// is this machine's own.
///
/// # Errors
///
/// Returns an error that says what is wrong: nothing listens, nothing answers in time, or the
/// process is not alive.
pub fn check_health(addr: SocketAddr, is_tls: bool) -> io::Result<String> {
    let (status, body) = match fetch_status(addr, is_tls, "/health") {
        Err(error) if wants_certificate(&error) => {
            return Ok(WANTS_CERTIFICATE.to_owned());
        }
        answer => answer?,
    };

    if status != "200" {
        let body = if body.is_empty() { "empty response" } else { &body };
        return Err(io::Error::other(format!("not alive: {body}")));
    }
    // A process that is not ready is still alive.
    let readiness = fetch_status(addr, is_tls, "/ready");
    Ok(readiness.map_or_else(|error| error.to_string(), |(_, body)| body))
}

/// Sends a GET request and returns the status and the last line of the response.
fn fetch_status(addr: SocketAddr, is_tls: bool, path: &str) -> io::Result<(String, String)> {
    let ip = match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };

    let stream = TcpStream::connect_timeout(&SocketAddr::new(ip, addr.port()), HEALTH_TIMEOUT)?;
    stream.set_read_timeout(Some(HEALTH_TIMEOUT))?;
    stream.set_write_timeout(Some(HEALTH_TIMEOUT))?;
    match is_tls {
        true => request_status(blind_stream(stream, ip)?, path),
        false => request_status(stream, path),
    }
}

fn request_status(mut stream: impl Read + Write, path: &str) -> io::Result<(String, String)> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;

    let mut answer = String::new();
    // The response of a probe is short; ignore the rest of anything longer.
    stream.take(4096).read_to_string(&mut answer)?;

    let status = answer.split(' ').nth(1).unwrap_or_default();
    Ok((status.to_owned(), answer.lines().last().unwrap_or_default().to_owned()))
}

/// Runs [`check_health`] and returns the exit code of the process: 0 if alive, 1 if not. The
/// response of `/ready` goes to standard output, an error to standard error.
pub fn health_exit_code(addr: SocketAddr, is_tls: bool) -> ExitCode {
    // If a stream is closed, the exit code still reports the result.
    match check_health(addr, is_tls) {
        Ok(readiness) => {
            _ = writeln!(io::stdout(), "{readiness}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            _ = writeln!(io::stderr(), "{addr}: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{Health, bind, probes, serve};

    #[tokio::test]
    async fn the_health_check_reports_readiness_and_failure() {
        let health = Health::new();
        let (listener, addr) = bind(SocketAddr::from(([0, 0, 0, 0], 0))).await.unwrap();
        let stop = tokio_util::sync::CancellationToken::new();
        let serving = tokio::spawn(serve(listener, probes(health.clone()), stop.clone()));
        let ask =
            async || tokio::task::spawn_blocking(move || check_health(addr, false)).await.unwrap();

        health.set_not_ready("broker unreachable");
        assert!(ask().await.unwrap().contains("broker unreachable"));

        health.set_failed("poll thread died");
        let error = ask().await.unwrap_err().to_string();
        assert!(error.contains("poll thread died"), "{error}");

        stop.cancel();
        serving.await.unwrap().unwrap();
        assert!(ask().await.is_err());
    }
}
