//! The header of libvirt's save images, which is before the migration stream in what `virDomainSave` writes and
//! `virDomainRestore` takes.
//!
//! ```text
//! LibvirtQemudSave | version 2 | data bytes | was running | format | cookie's offset | 14 × 0 | XML NUL [cookie NUL] padding
//!  16 bytes          u32, little-endian, each                          └──────── data bytes ────────┘
//! ```
//!
//! Owns that form, as libvirt 9 to 11 have it in `src/qemu/qemu_saveimage.c`. Promises: what it reads it writes again byte
//! by byte; compressed images and versions that it does not know are refused by name, with what to do instead; memory is
//! the header, whose size is limited. Must not read the XML, which is the caller's to understand.

pub(crate) const MAGIC: &[u8; 16] = b"LibvirtQemudSave";
/// Of an image that was not finished.
pub(crate) const PARTIAL: &[u8; 16] = b"LibvirtQemudPart";
const VERSION: u32 = 2;
const HEAD_BYTES: usize = 92;
/// Far above any XML with libvirt's padding.
const DATA_BYTES_MAX: u32 = 16 << 20;
/// By their numbers. The last is `mapped-ram`, and not compressed.
const FORMATS: [&str; 7] = ["raw", "gzip", "bzip2", "xz", "lzop", "zstd", "sparse"];

/// Why bytes are no save image whose stream can be read, or a save image cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SaveImageError {
    /// Something else.
    #[error("offset 0: no save image of libvirt: it does not begin with LibvirtQemudSave")]
    Magic,
    /// libvirt had not finished it.
    #[error("offset 0: an incomplete save image: libvirt was stopped while it wrote it")]
    Partial,
    /// Another version.
    #[error("offset 16: version {0} of libvirt's save image, only 2 is known")]
    Version(u32),
    /// Numbers in the other byte order.
    #[error("offset 16: a save image of a big-endian machine")]
    BigEndian,
    /// The stream is compressed, or not a stream.
    #[error(
        "offset 28: the save image has the format {0}: save with save_image_format = \"raw\" in qemu.conf"
    )]
    Format(&'static str),
    /// No format that is known.
    #[error("offset 28: the save image has the format number {0}, which is not known")]
    UnknownFormat(u32),
    /// A number or padding is not what libvirt writes.
    #[error("offset {at}: the {what} of the save image is not what libvirt writes")]
    Field {
        /// Which.
        what: &'static str,
        /// Where it begins, in bytes from the image's first.
        at: usize,
    },
    /// More than any image needs.
    #[error("offset 20: the XML and its padding have {0} bytes, more than {DATA_BYTES_MAX}")]
    TooLarge(u64),
    /// The image ends before the stream begins.
    #[error("offset {at}: the save image ends within its {what}")]
    Truncated {
        /// What is incomplete.
        what: &'static str,
        /// Where the image ends, in bytes from its first.
        at: usize,
    },
}

/// What libvirt keeps before the migration stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaveImage {
    /// The domain's XML.
    pub xml: String,
    /// XML of what else libvirt wants back, such as the processor's exact features.
    pub cookie: Option<String>,
    /// A restored domain runs, rather than being paused.
    pub was_running: bool,
    /// Zero bytes behind the XML and the cookie, in which a longer XML has room.
    pub padding: usize,
}

impl SaveImage {
    /// As much as libvirt leaves in new images, so that `virsh save-image-edit` works.
    pub const PADDING: usize = 64 << 10;

    /// The bytes to which the migration stream is added.
    ///
    /// # Errors
    ///
    /// [`SaveImageError::Field`] for a text that is empty or has a byte zero, [`SaveImageError::TooLarge`].
    pub fn encode(&self) -> Result<Vec<u8>, SaveImageError> {
        let texts = [Some(&self.xml), self.cookie.as_ref()];
        let whole = |text: &String| !text.is_empty() && !text.contains('\0');
        if !texts.into_iter().flatten().all(whole) {
            return Err(SaveImageError::Field { what: "XML or cookie", at: HEAD_BYTES });
        }
        let cookie_at = self.xml.len() + 1;
        let cookie_bytes = self.cookie.as_ref().map_or(0, |cookie| cookie.len() + 1);
        let bytes = (cookie_at + cookie_bytes).saturating_add(self.padding);
        let short = u32::try_from(bytes).ok().filter(|bytes| *bytes <= DATA_BYTES_MAX);
        let data_bytes = short.ok_or(SaveImageError::TooLarge(bytes as u64))?;
        let cookie_at = if cookie_bytes == 0 { 0 } else { cookie_at as u32 };
        let mut image = MAGIC.to_vec();
        for number in [VERSION, data_bytes, u32::from(self.was_running), 0, cookie_at] {
            image.extend(number.to_le_bytes());
        }
        image.resize(HEAD_BYTES, 0);
        for text in texts.into_iter().flatten() {
            image.extend(text.as_bytes());
            image.push(0);
        }
        image.resize(HEAD_BYTES + bytes, 0);
        Ok(image)
    }
}

/// Takes the header of a save image in pieces of any size.
#[derive(Debug, Default)]
pub struct SaveImageParser {
    taken: Vec<u8>,
}

impl SaveImageParser {
    /// Takes bytes from the front of `input`. With the header whole, what is left in `input` is of the migration stream,
    /// and this parser is done.
    ///
    /// # Errors
    ///
    /// Any [`SaveImageError`] but [`SaveImageError::Truncated`].
    pub fn next(&mut self, input: &mut &[u8]) -> Result<Option<SaveImage>, SaveImageError> {
        if !self.take(HEAD_BYTES, input) {
            return Ok(None);
        }
        let head = Head::parse(&self.taken)?;
        if !self.take(HEAD_BYTES + head.data_bytes, input) {
            return Ok(None);
        }
        head.image(&self.taken[HEAD_BYTES..]).map(Some)
    }

    /// For when no bytes come and [`SaveImageParser::next`] has not given a header: why not.
    #[must_use]
    pub fn truncated(&self) -> SaveImageError {
        let what = if self.taken.len() < HEAD_BYTES { "first 92 bytes" } else { "XML, cookie and padding" };
        SaveImageError::Truncated { what, at: self.taken.len() }
    }

    /// Takes up to a length; whether there are as many.
    fn take(&mut self, length: usize, input: &mut &[u8]) -> bool {
        let missing = length.saturating_sub(self.taken.len());
        let (piece, rest) = input.split_at(missing.min(input.len()));
        self.taken.extend_from_slice(piece);
        *input = rest;
        self.taken.len() >= length
    }
}

struct Head {
    data_bytes: usize,
    cookie_at: Option<usize>,
    was_running: bool,
}

impl Head {
    fn parse(bytes: &[u8]) -> Result<Self, SaveImageError> {
        let (magic, rest) = bytes.split_at(MAGIC.len());
        if magic == PARTIAL {
            return Err(SaveImageError::Partial);
        }
        if magic != MAGIC {
            return Err(SaveImageError::Magic);
        }
        let number = |at: usize| u32::from_le_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
        match number(0) {
            VERSION => {}
            other if other.swap_bytes() == VERSION => return Err(SaveImageError::BigEndian),
            other => return Err(SaveImageError::Version(other)),
        }
        match (number(12), FORMATS.get(number(12) as usize)) {
            (0, _) => {}
            (_, Some(format)) => return Err(SaveImageError::Format(format)),
            (other, None) => return Err(SaveImageError::UnknownFormat(other)),
        }
        let data_bytes = number(4);
        if data_bytes > DATA_BYTES_MAX {
            return Err(SaveImageError::TooLarge(data_bytes.into()));
        }
        let was_running = match number(8) {
            0 => false,
            1 => true,
            _ => return Err(SaveImageError::Field { what: "mark of a running domain", at: 24 }),
        };
        let cookie_at = number(16);
        if cookie_at != 0 && cookie_at >= data_bytes {
            return Err(SaveImageError::Field { what: "cookie's offset", at: 32 });
        }
        if rest[20..HEAD_BYTES - MAGIC.len()].iter().any(|byte| *byte != 0) {
            return Err(SaveImageError::Field { what: "unused space", at: 36 });
        }
        let cookie_at = (cookie_at != 0).then_some(cookie_at as usize);
        Ok(Self { data_bytes: data_bytes as usize, cookie_at, was_running })
    }

    fn image(&self, data: &[u8]) -> Result<SaveImage, SaveImageError> {
        let (xml, behind) = text(data, 0, "XML")?;
        let (cookie, behind) = match self.cookie_at {
            None => (None, behind),
            Some(at) if at == behind => {
                let (cookie, behind) = text(data, at, "cookie")?;
                (Some(cookie), behind)
            }
            Some(_) => return Err(SaveImageError::Field { what: "cookie's offset", at: 32 }),
        };
        if data[behind..].iter().any(|byte| *byte != 0) {
            return Err(SaveImageError::Field { what: "padding", at: HEAD_BYTES + behind });
        }
        Ok(SaveImage { xml, cookie, was_running: self.was_running, padding: data.len() - behind })
    }
}

/// A text at an offset, and the offset behind its byte zero.
fn text(data: &[u8], at: usize, what: &'static str) -> Result<(String, usize), SaveImageError> {
    let fault = SaveImageError::Field { what, at: HEAD_BYTES + at };
    let bytes = &data[at..];
    let Some(length) = bytes.iter().position(|byte| *byte == 0).filter(|length| *length > 0) else {
        return Err(fault);
    };
    let text = std::str::from_utf8(&bytes[..length]).map_err(|_| fault)?;
    Ok((text.to_owned(), at + length + 1))
}

#[cfg(test)]
#[path = "save_image/tests.rs"]
mod tests;
