//! Requests and replies survive the way over the socket; what is not one is refused.
use super::*;

const UUID: [u8; 16] = *b"0123456789abcdef";

fn requests() -> [Request; 5] {
    [
        Request::Hello,
        Request::Register { uuid: UUID, epoch: u64::MAX, lease: 3, pid: 4711, class: Class::SharedDisk },
        Request::Forget { uuid: UUID, epoch: 3 },
        Request::Deadline(Deadline { boottime_ns: 1 << 60, lease: 9 }),
        Request::Status,
    ]
}

#[test]
fn a_request_is_read_as_it_was_written() {
    for (tag, request) in (7..).zip(requests()) {
        assert_eq!(Request::decode(&request.encode(tag)), Some((request, tag)));
    }
}

#[test]
fn a_request_with_a_wrong_byte_is_refused() {
    for request in requests() {
        let bytes = request.encode(1);
        for at in [0, 3, 6, 7, 48, 63] {
            let mut wrong = bytes;
            wrong[at] ^= 0x80;
            assert_eq!(Request::decode(&wrong), None, "{request:?} with byte {at} changed");
        }
        assert_eq!(Request::decode(&bytes[..63]), None);
    }
    let mut unknown_class = requests()[1].encode(1);
    unknown_class[5] = 9;
    assert_eq!(Request::decode(&unknown_class), None);
    let mut hello_with_a_pid = Request::Hello.encode(1);
    hello_with_a_pid[12] = 1;
    assert_eq!(Request::decode(&hello_with_a_pid), None);
}

#[test]
fn a_reply_is_read_as_it_was_written() {
    let entry = Entry { uuid: UUID, epoch: 5, pid: 6, start_time: 7, class: Class::SharedDisk, dying: true };
    let status = Status {
        guard_pid: 1,
        started_ns: 2,
        now_ns: 3,
        deadline: Some(Deadline { boottime_ns: 4, lease: 5 }),
        registered: 1,
        capacity: 1024,
        kills: 8,
        fired: Some(Fired { deadline_ns: 9, sent_ns: 10, gone_ns: None }),
        entries: vec![entry],
    };
    for outcome in std::iter::once(Ok(())).chain(Refusal::ALL.into_iter().map(Err)) {
        let head = ReplyHead { operation: 5, tag: 77, outcome };
        let mut bytes = [0xff; REPLY_LEN + ENTRY_LEN];
        encode_reply(head, &status, &mut bytes);
        encode_entry(&entry, &mut bytes[REPLY_LEN..]);
        assert_eq!(decode_reply(&bytes), Some((head, status.clone())));
        assert_eq!(decode_reply(&bytes[..REPLY_LEN + 1]), None, "half an entry");
        bytes[5] = 200;
        assert_eq!(decode_reply(&bytes), None, "a reason that this version does not know");
    }
}
