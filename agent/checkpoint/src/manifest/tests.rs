//! A manifest survives the disk, and no change of it does.
use super::*;

fn manifest() -> Manifest {
    Manifest {
        node: "alice/exec-1".parse().unwrap(),
        id: CheckpointId { epoch: understudy_core::model::ids::Epoch(5), sequence: 17 },
        base: Some(CheckpointId { epoch: understudy_core::model::ids::Epoch(5), sequence: 16 }),
        description: Description {
            instance: "11111111-2222-4333-8444-000000000001".parse().unwrap(),
            taken: UnixMillis(1_700_000_000_123),
            pause_ms: 42,
            memory: MiB(256),
            domain: BTreeMap::from([("machine".to_owned(), "pc-q35-10.0".to_owned())]),
        },
        bytes: 1 << 28,
        root: Digest::of(b"pages"),
        state: Digest::of(b"devices"),
    }
}

#[test]
fn a_manifest_reads_back_as_it_was_written() {
    assert_eq!(decode(&encode(&manifest())), Ok(manifest()));
}

#[test]
fn a_truncated_manifest_is_none() {
    let bytes = encode(&manifest());
    // The last byte is the line's end.
    for len in 0..bytes.len() - 1 {
        assert!(decode(&bytes[..len]).is_err(), "{len} bytes");
    }
}

#[test]
fn no_flipped_bit_changes_what_a_manifest_says() {
    let bytes = encode(&manifest());
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << bit;
            // White space may become other white space.
            let outcome = decode(&changed);
            assert!(outcome.is_err() || outcome == Ok(manifest()), "byte {at} bit {bit}");
        }
    }
}

#[test]
fn a_later_version_is_distinguished_from_damage() {
    let text = String::from_utf8(encode(&manifest())).unwrap();
    let later = text.replacen("\"version\": 2", "\"version\": 3, \"disks\": {}", 1);
    assert_eq!(decode(later.as_bytes()), Err(Damage::Version(3)));
}
