//! Bodies that are compressed although nobody asked for it.

use std::io::{self, Write};

use flate2::write::{MultiGzDecoder, ZlibDecoder};

/// Why a body can't be decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DecodeError {
    /// It is encoded in a way that is not known here.
    Unknown(String),
    /// It is not what its header says.
    Broken(String),
    /// It grows past the limit.
    TooLarge,
}

/// Decodes a body as it comes.
#[derive(Debug)]
pub enum Decoding {
    /// There is nothing to decode.
    Identity,
    /// gzip.
    Gzip(Box<MultiGzDecoder<Bounded>>),
    /// zlib, which HTTP calls deflate.
    Deflate(Box<ZlibDecoder<Bounded>>),
}

impl Decoding {
    /// Reads a `Content-Encoding`. No chunk is decoded to more than `limit` bytes.
    ///
    /// # Errors
    ///
    /// If the encoding is not known.
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

    /// Whether bytes pass as they are.
    #[must_use]
    pub fn is_identity(&self) -> bool {
        matches!(self, Self::Identity)
    }

    /// What the next bytes decode to.
    ///
    /// # Errors
    ///
    /// If they are not what the header said, or decode to too much.
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

/// Takes so much and no more: a few bytes can decode to many.
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
    fn what_is_known_is_decoded_however_it_is_cut() {
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
    fn what_is_not_says_so() {
        assert_eq!(decode("br", &[], 100).unwrap_err(), DecodeError::Unknown("br".to_owned()));
        assert!(matches!(decode("gzip", &[b"plain text"], 100), Err(DecodeError::Broken(_))));
        assert_eq!(decode("gzip", &[&gzip(&[0; 100_000])], 1000), Err(DecodeError::TooLarge));
    }
}
