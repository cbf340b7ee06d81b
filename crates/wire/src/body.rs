//! The body of a response: decoded and counted as it comes, from whatever stream of chunks the
//! caller has.

use bytes::Bytes;
use futures::{Stream, StreamExt as _};

use crate::encoding::{DecodeError, Decoding};

/// What a body in gzip begins with.
const GZIP: &[u8] = &[0x1f, 0x8b, 8];

/// How many encoded bytes are decoded at a time. Deflate makes at most 1032 bytes of one, so there
/// is never much more than a mebibyte that nobody has read yet.
const PIECE: usize = 1 << 10;

/// Why a body can't be read.
#[derive(Debug)]
pub enum BodyError<E> {
    /// The stream of chunks broke off.
    Lost(E),
    /// It is encoded in a way that can't be read, or too large.
    Encoding(DecodeError),
}

/// A body that is being read.
#[derive(Debug)]
pub struct Body<S> {
    chunks: S,
    /// What came and is still to be decoded.
    rest: Bytes,
    decoding: Decoding,
    /// How many bytes are to come, if the response says so.
    length: Option<u64>,
    limit: usize,
}

impl<S, E> Body<S>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
{
    /// A body of these chunks, of which at most `limit` bytes are kept, with its `Content-Encoding`
    /// and `Content-Length`.
    ///
    /// # Errors
    ///
    /// If the encoding is not known.
    pub fn new(
        chunks: S,
        encoding: Option<&str>,
        length: Option<u64>,
        limit: usize,
    ) -> Result<Self, DecodeError> {
        let decoding = Decoding::of(encoding, limit)?;
        Ok(Self { chunks, rest: Bytes::new(), decoding, length, limit })
    }

    /// The next bytes. There may be none in them; the end is `None`.
    ///
    /// # Errors
    ///
    /// If the stream breaks off, or its bytes are not what the header said.
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

    /// All of it, decoded also if it is gzip and its header does not say so.
    ///
    /// # Errors
    ///
    /// As [`Body::chunk`], and if it is larger than the limit.
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

    /// The beginning. What breaks or is too long is cut off: the status has said what matters.
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

/// Reads the rest of a short body that is of no interest: an unread one would cost the connection.
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
    fn a_prefix_is_what_there_is() {
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
    fn a_chunk_that_decodes_to_very_much_comes_in_pieces() {
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
