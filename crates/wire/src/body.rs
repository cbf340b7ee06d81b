//! Reading the body of a response, decoded and counted chunk by chunk, from any stream of chunks.

use bytes::Bytes;
use futures::{Stream, StreamExt as _};

use crate::encoding::{DecodeError, Decoding};

/// The first bytes of a gzip body.
const GZIP: &[u8] = &[0x1f, 0x8b, 8];

/// How many encoded bytes are decoded at a time. Deflate expands one byte to at most 1032 bytes, so
/// there is never much more than a mebibyte of decoded data waiting.
const PIECE: usize = 1 << 10;

/// Why a body cannot be read.
#[derive(Debug)]
pub enum BodyError<E> {
    /// The stream of chunks broke off.
    Lost(E),
    /// The body's encoding is unknown or broken, or the body is too large.
    Encoding(DecodeError),
}

/// A body that is being read.
#[derive(Debug)]
pub struct Body<S> {
    chunks: S,
    /// Bytes that were received but not decoded yet.
    rest: Bytes,
    decoding: Decoding,
    /// The length that the response announced, if any.
    length: Option<u64>,
    limit: usize,
}

impl<S, E> Body<S>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
{
    /// Creates a body from its chunks, its `Content-Encoding` and its `Content-Length`. At most
    /// `limit` bytes of it are kept.
    ///
    /// # Errors
    ///
    /// Returns an error if the encoding is unknown.
    pub fn new(
        chunks: S,
        encoding: Option<&str>,
        length: Option<u64>,
        limit: usize,
    ) -> Result<Self, DecodeError> {
        let decoding = Decoding::of(encoding, limit)?;
        Ok(Self { chunks, rest: Bytes::new(), decoding, length, limit })
    }

    /// Returns the next bytes, possibly none; `None` marks the end.
    ///
    /// # Errors
    ///
    /// Returns an error if the stream breaks off or its bytes do not match the encoding.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, BodyError<E>> {
        if self.rest.is_empty() {
            let Some(chunk) = self.chunks.next().await else { return Ok(None) };
            self.rest = chunk.map_err(BodyError::Lost)?;
        }
        if self.decoding.is_identity() {
            return Ok(Some(std::mem::take(&mut self.rest)));
        }

        let piece = self.rest.split_to(self.rest.len().min(PIECE));
        let decoded = self.decoding.push(&piece).map_err(BodyError::Encoding)?;
        Ok(Some(Bytes::from(decoded)))
    }

    /// Reads the whole body. A gzip body is decoded even if its header does not announce the
    /// encoding.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`Body::chunk`], and an error if the body is larger than the limit.
    pub async fn whole(&mut self) -> Result<Vec<u8>, BodyError<E>> {
        const TOO_LARGE: DecodeError = DecodeError::TooLarge;
        if self.length.is_some_and(|length| length > self.limit as u64) {
            return Err(BodyError::Encoding(TOO_LARGE));
        }

        let mut body = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            if body.len() + chunk.len() > self.limit {
                return Err(BodyError::Encoding(TOO_LARGE));
            }
            body.extend_from_slice(&chunk);
        }

        if !body.starts_with(GZIP) {
            return Ok(body);
        }

        let decoded = Decoding::of(Some("gzip"), self.limit).and_then(|mut gzip| gzip.push(&body));
        decoded.map_err(BodyError::Encoding)
    }

    /// Reads the start of the body. Whatever is too long or cannot be read is left out, since the
    /// status already tells what matters.
    pub async fn prefix(&mut self, max: usize) -> Vec<u8> {
        let mut body = Vec::new();
        while let Ok(Some(chunk)) = self.chunk().await {
            let room = max - body.len();
            body.extend_from_slice(&chunk[..chunk.len().min(room)]);
            if body.len() == max {
                break;
            }
        }
        body
    }
}

/// Reads and discards the rest of a short body, because leaving it unread would cost the
/// connection.
pub async fn drain<E>(mut chunks: impl Stream<Item = Result<Bytes, E>> + Unpin, max: usize) {
    let mut room = max;
    while room > 0
        && let Some(Ok(chunk)) = chunks.next().await
    {
        room = room.saturating_sub(chunk.len());
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use futures::{FutureExt as _, stream};

    use super::*;

    type Chunk = Result<Bytes, &'static str>;
    type Chunks = stream::Iter<std::vec::IntoIter<Chunk>>;

    fn body(chunks: &[Chunk], encoding: Option<&str>, length: Option<u64>) -> Body<Chunks> {
        Body::new(stream::iter(chunks.to_vec()), encoding, length, 10).unwrap()
    }

    fn chunk(bytes: &'static [u8]) -> Chunk {
        Ok(Bytes::from_static(bytes))
    }

    #[test]
    fn a_body_is_read_up_to_its_limit() {
        let read =
            |chunks: &[Chunk], length| body(chunks, None, length).whole().now_or_never().unwrap();
        assert_eq!(read(&[chunk(b"12345"), chunk(b"67890")], None).unwrap(), b"1234567890");

        let too_large = |found| matches!(found, Err(BodyError::Encoding(DecodeError::TooLarge)));
        assert!(too_large(read(&[chunk(b"12345"), chunk(b"678901")], None)));
        assert!(too_large(read(&[], Some(11))));
        assert!(matches!(read(&[chunk(b"1"), Err("gone")], None), Err(BodyError::Lost("gone"))));
    }

    #[test]
    fn a_prefix_is_what_could_be_read() {
        let prefix =
            |chunks: &[Chunk]| body(chunks, None, Some(11)).prefix(7).now_or_never().unwrap();
        assert_eq!(prefix(&[chunk(b"12345"), chunk(b"67890")]), b"1234567");
        assert_eq!(prefix(&[chunk(b"12345"), Err("gone")]), b"12345");
    }

    #[test]
    fn an_encoded_body_is_decoded() {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(b"plain").unwrap();
        let encoded = Bytes::from(encoder.finish().unwrap());

        let mut found = body(&[Ok(encoded.slice(..8)), Ok(encoded.slice(8..))], Some("gzip"), None);
        assert_eq!(found.whole().now_or_never().unwrap().unwrap(), b"plain");

        let mut unlabelled = body(&[Ok(encoded)], None, None);
        unlabelled.limit = 100;
        assert_eq!(unlabelled.whole().now_or_never().unwrap().unwrap(), b"plain");

        let unknown = Body::new(stream::iter([chunk(b"")]), Some("br"), None, 10).err();
        assert_eq!(unknown, Some(DecodeError::Unknown("br".to_owned())));
    }

    #[test]
    fn a_chunk_that_expands_greatly_arrives_in_pieces() {
        const SIZE: usize = 16 << 20;
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(&b"id\n\n".repeat(SIZE / 4)).unwrap();
        let encoded: Chunk = Ok(Bytes::from(encoder.finish().unwrap()));
        assert!(encoded.as_ref().unwrap().len() < SIZE / 500);

        let mut found = Body::new(stream::iter([encoded]), Some("gzip"), None, SIZE).unwrap();
        let (mut total, mut largest) = (0, 0);
        while let Some(chunk) = found.chunk().now_or_never().unwrap().unwrap() {
            total += chunk.len();
            largest = largest.max(chunk.len());
        }
        assert_eq!(total, SIZE);
        assert!(largest < 2 << 20, "{largest}");
    }
}
