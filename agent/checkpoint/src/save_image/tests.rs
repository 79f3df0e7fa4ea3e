//! Save images: what libvirt writes comes back byte by byte, anything else is refused.

use proptest::prelude::*;

use super::*;

fn image(cookie: Option<&str>, padding: usize) -> SaveImage {
    let xml = "<domain type='kvm'>é</domain>".to_owned();
    SaveImage { xml, cookie: cookie.map(str::to_owned), was_running: true, padding }
}

/// Parses an image in pieces of a size; the header and what is left.
fn parse(bytes: &[u8], piece: usize) -> Result<(SaveImage, Vec<u8>), SaveImageError> {
    let mut parser = SaveImageParser::default();
    let mut left: Vec<u8> = Vec::new();
    let mut found = None;
    for piece in bytes.chunks(piece) {
        let mut rest = piece;
        if found.is_none() {
            found = parser.next(&mut rest)?;
        }
        left.extend(rest);
    }
    found.map(|image| (image, left)).ok_or_else(|| parser.truncated())
}

#[test]
fn an_image_has_the_bytes_that_libvirt_writes() {
    let bytes = image(Some("<cookie/>"), 3).encode().unwrap();
    assert_eq!(&bytes[..16], b"LibvirtQemudSave");
    let numbers: Vec<u32> =
        bytes[16..36].chunks(4).map(|four| u32::from_le_bytes(four.try_into().unwrap())).collect();
    let xml = image(None, 0).xml.len() as u32;
    assert_eq!(numbers, [2, xml + 1 + 10 + 3, 1, 0, xml + 1]);
    assert_eq!(bytes[36..92], [0; 56]);
    assert!(bytes.ends_with(b"</domain>\0<cookie/>\0\0\0\0"));
}

#[test]
fn an_image_comes_back_in_pieces_of_any_size_and_leaves_the_stream() {
    let images = [image(None, 0), image(Some("<c/>"), 0), image(Some("<c/>"), SaveImage::PADDING)];
    for image in images.into_iter().chain([SaveImage { was_running: false, ..image(None, 9) }]) {
        let mut bytes = image.encode().unwrap();
        bytes.extend(b"QEVM and so on");
        for piece in [1, 7, 91, 92, 93, bytes.len()] {
            let (found, left) = parse(&bytes, piece).unwrap();
            assert_eq!((&found, &left[..]), (&image, &b"QEVM and so on"[..]), "pieces of {piece}");
        }
    }
}

#[test]
fn an_image_that_ends_too_early_is_an_error_wherever_it_ends() {
    let bytes = image(Some("<c/>"), 5).encode().unwrap();
    for length in 0..bytes.len() {
        let error = parse(&bytes[..length], 16).unwrap_err();
        assert!(matches!(error, SaveImageError::Truncated { at, .. } if at == length), "{length}: {error}");
    }
}

#[test]
fn what_is_not_known_is_refused_by_name() {
    let good = image(Some("<c/>"), 5).encode().unwrap();
    let xml_end = 92 + image(None, 0).xml.len();
    let cases: [(usize, &[u8], &str); 15] = [
        (0, b"L1", "does not begin with LibvirtQemudSave"),
        (12, b"Part", "incomplete"),
        (16, &[1, 0, 0, 0], "version 1"),
        (16, &[3, 0, 0, 0], "version 3"),
        (16, &[0, 0, 0, 2], "big-endian"),
        (20, &[0xff; 4], "4294967295 bytes, more than 16777216"),
        (24, &[2], "offset 24: the mark of a running domain"),
        (28, &[1], "offset 28: the save image has the format gzip: save with save_image_format = \"raw\""),
        (28, &[5], "the format zstd"),
        (28, &[6], "the format sparse"),
        (28, &[7], "the format number 7"),
        (32, &[0xff], "offset 32: the cookie's offset"),
        (32, &[9], "offset 32: the cookie's offset"),
        (91, &[1], "offset 36: the unused space"),
        (good.len() - 1, &[1], "the padding"),
    ];
    for (at, bytes, expected) in cases {
        let mut bad = good.clone();
        bad[at..at + bytes.len()].copy_from_slice(bytes);
        let error = parse(&bad, 4096).unwrap_err().to_string();
        assert!(error.contains(expected), "{at}: {error}");
    }
    let mut bad = good;
    bad[92] = 0xff;
    assert_eq!(parse(&bad, 9), Err(SaveImageError::Field { what: "XML", at: 92 }));
    bad[92..xml_end].fill(0);
    assert_eq!(parse(&bad, 9), Err(SaveImageError::Field { what: "XML", at: 92 }));
}

#[test]
fn what_could_not_be_read_again_is_not_written() {
    let nul = SaveImage { xml: "<a>\0</a>".to_owned(), ..image(None, 0) };
    let empty = SaveImage { cookie: Some(String::new()), ..image(None, 0) };
    let large = [usize::MAX, 16 << 20].map(|padding| image(None, padding));
    for bad in [nul, empty].into_iter().chain(large) {
        assert!(bad.encode().is_err());
    }
}

proptest! {
    #[test]
    fn a_changed_image_is_an_error_or_is_written_again_as_it_was(
        changes in prop::collection::vec((0usize..160, any::<u8>()), 1..4),
        piece in 1usize..200,
    ) {
        let mut bytes = image(Some("<c/>"), 5).encode().unwrap();
        let length = bytes.len();
        for (at, byte) in changes {
            bytes[at % length] = byte;
        }
        if let Ok((image, left)) = parse(&bytes, piece) {
            let mut again = image.encode().unwrap();
            again.extend(left);
            prop_assert_eq!(again, bytes);
        }
    }
}
