//! Recognizing and decoding bytes that are not plain JSON in UTF-8.

use base64::{
    Engine as _,
    alphabet::{self, Alphabet},
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};

/// The headers that schema registries put in front of a value: the first byte, the length of the
/// header, and the name of the format.
pub(super) const REGISTRY_HEADERS: [(u8, usize, &str); 3] = [
    (0, 5, "Confluent's wire format"),
    (0, 9, "Apicurio's wire format"),
    (3, 18, "the wire format of AWS Glue's schema registry"),
];

/// The second byte of AWS Glue's header if the value is compressed with zlib.
pub(super) const GLUE_ZLIB: u8 = 5;

/// The first bytes of formats that are recognized but not supported, and their names.
const NOT_READ: [(&[u8], &str); 12] = [
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"\xff\x06\x00\x00sNaPpY", "snappy"),
    (b"\x82SNAPPY\0", "snappy"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\xac\xed\x00\x05", "Java's object serialization"),
    (b"Obj\x01", "an Avro container file"),
    (b":)\n", "Smile"),
    (b"\x80\x02", "Python's pickle"),
    (b"\x80\x03", "Python's pickle"),
    (b"\x80\x04", "Python's pickle"),
];

/// Returns the name of a format that is recognized but not supported.
pub(super) fn name_unread_format(bytes: &[u8]) -> Option<&'static str> {
    if let Some((_, name)) = NOT_READ.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return Some(name);
    }

    // A map followed by the text of its first key. UTF-8 text cannot start with such a byte.
    match *bytes {
        [0x80, 0x05, ..] => Some("Python's pickle"),
        [0x81..=0x8f, 0xa0..=0xbf | 0xd9..=0xdb, ..] => Some("MessagePack"),
        [0xde, _, _, 0xa0..=0xbf | 0xd9..=0xdb, ..] => Some("MessagePack"),
        [0xa1..=0xb7 | 0xbf, 0x60..=0x7b | 0x7f, ..] => Some("CBOR"),
        [0xb8, _, 0x60..=0x7b | 0x7f, ..] => Some("CBOR"),
        [0xd9, 0xd9, 0xf7, ..] => Some("CBOR"),
        _ => None,
    }
}

/// A supported compression.
#[derive(Debug, Clone, Copy)]
pub(super) enum Compression {
    Gzip,
    Zlib,
}

impl Compression {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zlib => "zlib",
        }
    }

    pub(super) fn of(bytes: &[u8]) -> Option<Self> {
        match *bytes {
            [0x1f, 0x8b, ..] => Some(Self::Gzip),
            // A multiple of 31, and no preset dictionary.
            [0x78, flags, ..]
                if flags & 0x20 == 0 && u16::from_be_bytes([0x78, flags]).is_multiple_of(31) =>
            {
                Some(Self::Zlib)
            }
            _ => None,
        }
    }
}

/// Decodes text in UTF-16 or UTF-32 and returns it with the name of the encoding. Only text that
/// starts as JSON does is accepted.
pub(super) fn decode_wide_text(bytes: &[u8]) -> Option<(String, &'static str)> {
    let (name, text) = match bytes {
        [0xff, 0xfe, 0, 0, rest @ ..] => ("UTF-32", utf32(rest, u32::from_le_bytes)),
        [0, 0, 0xfe, 0xff, rest @ ..] => ("UTF-32", utf32(rest, u32::from_be_bytes)),
        [0xff, 0xfe, rest @ ..] => ("UTF-16", utf16(rest, u16::from_le_bytes)),
        [0xfe, 0xff, rest @ ..] => ("UTF-16", utf16(rest, u16::from_be_bytes)),
        [1..=255, 0, 0, 0, ..] => ("UTF-32", utf32(bytes, u32::from_le_bytes)),
        [0, 0, 0, 1..=255, ..] => ("UTF-32", utf32(bytes, u32::from_be_bytes)),
        [1..=255, 0, ..] => ("UTF-16", utf16(bytes, u16::from_le_bytes)),
        [0, 1..=255, ..] => ("UTF-16", utf16(bytes, u16::from_be_bytes)),
        _ => return None,
    };

    text.filter(|text| text.trim_start().starts_with(['{', '"', '['])).map(|text| (text, name))
}

fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> Option<String> {
    let (pairs, rest) = bytes.as_chunks::<2>();
    if pairs.is_empty() || !rest.is_empty() {
        return None;
    }
    char::decode_utf16(pairs.iter().copied().map(unit)).collect::<Result<_, _>>().ok()
}

fn utf32(bytes: &[u8], unit: fn([u8; 4]) -> u32) -> Option<String> {
    let (units, rest) = bytes.as_chunks::<4>();
    if units.is_empty() || !rest.is_empty() {
        return None;
    }
    units.iter().map(|bytes| char::from_u32(unit(*bytes))).collect()
}

/// The shortest text that is treated as base64; every envelope is longer.
const MIN_BASE64: usize = 12;

/// Decodes base64 in the standard or the URL-safe alphabet, with or without padding and line
/// breaks.
pub(super) fn decode_base64(text: &[u8]) -> Option<Vec<u8>> {
    let text: Vec<u8> = text.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    if text.len() < MIN_BASE64 {
        return None;
    }

    let is_url_safe = text.iter().any(|byte| matches!(byte, b'-' | b'_'));
    let alphabet = if is_url_safe { &alphabet::URL_SAFE } else { &alphabet::STANDARD };
    decoder(alphabet).decode(&text).ok()
}

fn decoder(alphabet: &Alphabet) -> GeneralPurpose {
    let config = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true);
    GeneralPurpose::new(alphabet, config)
}
