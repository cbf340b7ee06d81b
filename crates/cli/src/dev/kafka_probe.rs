//! Probes whether a Kafka broker responds, with the first two requests of every client.
//!
//! The requests are written by hand, in their oldest versions, which have the fewest fields
//! (`ApiVersions` 0 and `Metadata` 1 in Kafka's protocol guide): a client of librdkafka would
//! start several threads for each probe. Only the head of a response is checked, because a broker
//! that has failed does not respond at all.

use std::io;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, ToSocketAddrs},
};

/// The name under which the broker sees this client.
const CLIENT: &str = "mcp-fleet";
/// The bytes of a correlation id, with which every response begins.
const CORRELATION_ID: usize = size_of::<i32>();
/// A larger response is not one of a broker.
const MAX_RESPONSE: usize = 1024 * 1024;

/// A request without its header.
struct Request {
    api_key: i16,
    api_version: i16,
    body: &'static [u8],
}

/// Asks which requests the broker serves.
const API_VERSIONS: Request = Request { api_key: 18, api_version: 0, body: &[] };
/// Asks for the brokers of the cluster. The body is an array of no topics.
const METADATA: Request = Request { api_key: 3, api_version: 1, body: &[0; 4] };

impl Request {
    /// Returns the frame to send: its length, the header, and the body. All numbers are big-endian.
    fn encode(&self, correlation_id: i32) -> Vec<u8> {
        // The constants are shorter than any limit.
        let client_length = i16::try_from(CLIENT.len()).unwrap_or(i16::MAX);

        let mut request = Vec::new();
        request.extend(self.api_key.to_be_bytes());
        request.extend(self.api_version.to_be_bytes());
        request.extend(correlation_id.to_be_bytes());
        request.extend(client_length.to_be_bytes());
        request.extend(CLIENT.as_bytes());
        request.extend(self.body);

        let length = i32::try_from(request.len()).unwrap_or(i32::MAX);
        [&length.to_be_bytes()[..], &request].concat()
    }
}

/// Returns once the broker at `address` has responded to both requests.
pub(super) async fn send_first_requests(address: impl ToSocketAddrs) -> io::Result<()> {
    let mut stream = TcpStream::connect(address).await?;

    for (correlation_id, request) in (1..).zip([API_VERSIONS, METADATA]) {
        stream.write_all(&request.encode(correlation_id)).await?;
        read_response(&mut stream, correlation_id).await?;
    }
    Ok(())
}

/// Reads the response to the request with this correlation id.
async fn read_response(stream: &mut TcpStream, correlation_id: i32) -> io::Result<()> {
    let length = usize::try_from(stream.read_i32().await?).map_err(io::Error::other)?;
    if !(CORRELATION_ID..=MAX_RESPONSE).contains(&length) {
        return Err(io::ErrorKind::InvalidData.into());
    }

    let mut response = vec![0; length];
    stream.read_exact(&mut response).await?;

    if response.starts_with(&correlation_id.to_be_bytes()) {
        Ok(())
    } else {
        Err(io::ErrorKind::InvalidData.into())
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn requests_follow_the_protocol_guide() {
        let versions = b"\0\0\0\x13\0\x12\0\0\0\0\0\x01\0\x09mcp-fleet";
        assert_eq!(API_VERSIONS.encode(1), versions);
        let metadata = b"\0\0\0\x17\0\x03\0\x01\0\0\0\x02\0\x09mcp-fleet\0\0\0\0";
        assert_eq!(METADATA.encode(2), metadata);
    }

    /// Probes a broker that responds to the first request with one frame, and to the second with
    /// the other.
    async fn probe(responses: [&'static [u8]; 2]) -> io::Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;

        let broker = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await?;
            for (request, response) in [API_VERSIONS, METADATA].iter().zip(responses) {
                let mut frame = vec![0; request.encode(0).len()];
                stream.read_exact(&mut frame).await?;
                stream.write_all(response).await?;
            }
            io::Result::Ok(())
        });

        let result = send_first_requests(address).await;
        broker.abort();
        result
    }

    #[tokio::test]
    async fn both_requests_need_a_response_of_their_own() {
        assert!(probe([b"\0\0\0\x06\0\0\0\x01\0\0", b"\0\0\0\x04\0\0\0\x02"]).await.is_ok());

        let to_another: &[u8] = b"\0\0\0\x04\0\0\0\x01";
        assert!(probe([to_another, to_another]).await.is_err());
        assert!(probe([b"\0\0\0\x02\0\0", b""]).await.is_err(), "too short");
        assert!(probe([b"\x7f\xff\xff\xff", b""]).await.is_err(), "too long");
        assert!(probe([b"\xff\xff\xff\xff", b""]).await.is_err(), "a negative length");
    }
}
