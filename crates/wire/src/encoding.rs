//! Decoding bodies that are compressed although no client asked for that.

use std::io::{self, Write};

use flate2::write::{MultiGzDecoder, ZlibDecoder};

/// Why a body cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DecodeError {
    /// The encoding with this name is unknown.
    Unknown(String),
    /// The body does not match its encoding.
    Broken(String),
    /// The body exceeds the limit.
    TooLarge,
}

/// Decodes a body chunk by chunk.
#[derive(Debug)]
pub enum Decoding {
    /// The body is not encoded.
    Identity,
    /// The encoding `gzip`.
    Gzip(Box<MultiGzDecoder<Bounded>>),
    /// The encoding `deflate`, which is zlib.
    Deflate(Box<ZlibDecoder<Bounded>>),
}

impl Decoding {
    /// Creates a decoder for a `Content-Encoding`. No chunk may decode to more than `limit` bytes.
    ///
    /// # Errors
    ///
    /// Returns an error if the encoding is unknown.
    pub fn of(content_encoding: Option<&str>, limit: usize) -> Result<Self, DecodeError> {
        let name = content_encoding.unwrap_or_default().trim().to_ascii_lowercase();
        let bounded = Bounded { out: Vec::new(), limit };
        match name.as_str() {
            "" | "identity" => Ok(Self::Identity),
            "gzip" | "x-gzip" => Ok(Self::Gzip(Box::new(MultiGzDecoder::new(bounded)))),
            "deflate" => Ok(Self::Deflate(Box::new(ZlibDecoder::new(bounded)))),
            _ => Err(DecodeError::Unknown(name)),
        }
    }

    /// Returns whether bytes pass unchanged.
    #[must_use]
    pub fn is_identity(&self) -> bool {
        matches!(self, Self::Identity)
    }

    /// Decodes the next bytes.
    ///
    /// # Errors
    ///
    /// Returns an error if the bytes do not match the encoding or decode to too much.
    pub fn push(&mut self, chunk: &[u8]) -> Result<Vec<u8>, DecodeError> {
        let written = match self {
            Self::Identity => return Ok(chunk.to_vec()),
            Self::Gzip(decoder) => decoder.write_all(chunk).and_then(|()| decoder.flush()),
            Self::Deflate(decoder) => decoder.write_all(chunk).and_then(|()| decoder.flush()),
        };
        written.map_err(|error| match error.kind() {
            io::ErrorKind::QuotaExceeded => DecodeError::TooLarge,
            _ => DecodeError::Broken(error.to_string()),
        })?;

        Ok(match self {
            Self::Identity => Vec::new(),
            Self::Gzip(decoder) => std::mem::take(&mut decoder.get_mut().out),
            Self::Deflate(decoder) => std::mem::take(&mut decoder.get_mut().out),
        })
    }
}

/// A buffer that refuses to grow past its limit, since a few bytes may decode to very many.
#[derive(Debug)]
pub struct Bounded {
    out: Vec<u8>,
    limit: usize,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.out.len() + bytes.len() > self.limit {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        self.out.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use flate2::{
        Compression,
        write::{GzEncoder, ZlibEncoder},
    };

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn decode(encoding: &str, chunks: &[&[u8]], limit: usize) -> Result<Vec<u8>, DecodeError> {
        let mut decoding = Decoding::of(Some(encoding), limit)?;
        let parts: Result<Vec<_>, _> = chunks.iter().map(|chunk| decoding.push(chunk)).collect();
        Ok(parts?.concat())
    }

    #[test]
    fn known_encodings_are_decoded_however_they_are_cut() {
        let whole = gzip(b"{\"a\":1}");
        let single: Vec<&[u8]> = whole.chunks(1).collect();
        assert_eq!(decode("GZIP", &[&whole], 100).unwrap(), b"{\"a\":1}");
        assert_eq!(decode("x-gzip", &single, 100).unwrap(), b"{\"a\":1}");

        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(b"x").unwrap();
        assert_eq!(decode("deflate", &[&encoder.finish().unwrap()], 100).unwrap(), b"x");

        assert_eq!(decode("identity", &[b"a", b"b"], 1).unwrap(), b"ab");
    }

    #[test]
    fn unknown_broken_and_excessive_bodies_are_refused() {
        assert_eq!(decode("br", &[], 100).unwrap_err(), DecodeError::Unknown("br".to_owned()));
        assert!(matches!(decode("gzip", &[b"plain text"], 100), Err(DecodeError::Broken(_))));
        assert_eq!(decode("gzip", &[&gzip(&[0; 100_000])], 1000), Err(DecodeError::TooLarge));
    }
}
