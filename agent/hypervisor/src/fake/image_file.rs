//! Owns the files that saved images are, for those who take them apart and put them together again: libvirt's header, and
//! behind it the shortest stream of QEMU's that has a page.
//!
//! Promises: the header says which image it is, wherever the file is copied to, and as which file it is made again. Must not
//! do: hold the memory; the world does.

use std::io;
use std::path::{Path, PathBuf};

const MAGIC: &[u8] = b"LibvirtQemudSave";
/// Behind the magic: version 2, the length of the XML, that it was running, and 16 more numbers.
const NUMBERS: usize = 19;
const XML_AT: usize = MAGIC.len() + NUMBERS * 4;
const PAGE: usize = 4096;
const RAM: u32 = 2;

/// Writes the file of an image that is known under this path.
pub(super) fn write(path: &Path) -> io::Result<()> {
    std::fs::write(path, bytes(path))
}

/// What is in such a file.
pub(super) fn bytes(path: &Path) -> Vec<u8> {
    let xml = format!("<image>{}</image>\0", path.display());
    let mut file = MAGIC.to_vec();
    let length = u32::try_from(xml.len()).unwrap_or_default();
    let numbers = [2, length, 1];
    (0..NUMBERS).for_each(|at| file.extend(numbers.get(at).copied().unwrap_or(0_u32).to_le_bytes()));
    file.extend(xml.as_bytes());
    file.extend(stream(xml.as_bytes()));
    file
}

/// The path under which the image is known that a file is of.
pub(super) fn known_as(path: &Path) -> io::Result<PathBuf> {
    let file = std::fs::read(path)?;
    let xml = file.get(XML_AT..).and_then(|rest| rest.split(|byte| *byte == 0).next()).unwrap_or_default();
    let text = std::str::from_utf8(xml).unwrap_or_default();
    let inside = text.strip_prefix("<image>").and_then(|text| text.strip_suffix("</image>"));
    inside.map(PathBuf::from).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// One block of RAM of one page, which begins with these bytes, and no device.
fn stream(text: &[u8]) -> Vec<u8> {
    let mut page = text.to_vec();
    page.resize(PAGE, 0);
    let machine = b"fake-1.0";
    let description = br#"{"configuration": {}, "page_size": 4096, "devices": []}"#;
    let size = PAGE as u64;
    let number = |number: usize| u32::try_from(number).unwrap_or_default().to_be_bytes();
    [
        // The head, and the configuration.
        &b"QEVM\0\0\0\x03\x07"[..],
        &number(machine.len()),
        machine,
        // RAM begins: section, name, instance, version; the size of all; one block; the end of a section.
        b"\x01",
        &RAM.to_be_bytes(),
        b"\x03ram\0\0\0\0\0\0\0\x04",
        &(size | 0x04).to_be_bytes(),
        b"\x06pc.ram",
        &size.to_be_bytes(),
        &end_of_section(),
        // Its end, with the page.
        b"\x03",
        &RAM.to_be_bytes(),
        &0x08_u64.to_be_bytes(),
        b"\x06pc.ram",
        &page,
        &end_of_section(),
        // No device, and the description.
        b"\0\x06",
        &number(description.len()),
        description,
    ]
    .concat()
}

fn end_of_section() -> Vec<u8> {
    [&0x10_u64.to_be_bytes()[..], b"\x7e", &RAM.to_be_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_says_which_image_it_is_wherever_it_is_copied_to() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (folder.path().join("first"), folder.path().join("second"));
        write(&first).unwrap();
        std::fs::copy(&first, &second).unwrap();
        assert_eq!(known_as(&second).unwrap(), first);
        std::fs::write(&second, "other").unwrap();
        assert!(known_as(&second).is_err());
    }
}
