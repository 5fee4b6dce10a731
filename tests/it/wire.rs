//! Kafka's protocol by hand: what the clients that the tests have will not send.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// How long a broker may take to respond.
const PATIENCE: Duration = Duration::from_secs(20);
const PRODUCE: (i16, i16) = (0, 3);
const OFFSET_COMMIT: (i16, i16) = (8, 2);

/// Produces one record whose header has a name of any bytes.
pub(crate) fn produce_with_header(
    broker: &str,
    partition: (&str, i32),
    (key, value): (&[u8], &[u8]),
    header: &[u8],
) {
    let batch = batch((key, value), header, |checksum| checksum);
    produce(broker, partition, &batch);
}

/// Produces one record whose batch fails its checksum; only a broker that does not look takes it.
pub(crate) fn produce_damaged(broker: &str, partition: (&str, i32), key: &[u8]) {
    produce(
        broker,
        partition,
        &batch((key, b"v"), b"name", |checksum| !checksum),
    );
}

fn batch(
    (key, value): (&[u8], &[u8]),
    header: &[u8],
    checksum: impl FnOnce(u32) -> u32,
) -> Vec<u8> {
    let mut record = vec![0];
    varint(&mut record, 0);
    varint(&mut record, 0);
    for bytes in [key, value] {
        short_bytes(&mut record, bytes);
    }
    varint(&mut record, 1);
    short_bytes(&mut record, header);
    short_bytes(&mut record, b"value of the header");

    // From the attributes on: what the checksum covers.
    let mut covered = Vec::new();
    covered.extend(0_i16.to_be_bytes());
    covered.extend(0_i32.to_be_bytes());
    let now = jiff::Timestamp::now().as_millisecond();
    covered.extend(now.to_be_bytes());
    covered.extend(now.to_be_bytes());
    covered.extend((-1_i64).to_be_bytes());
    covered.extend((-1_i16).to_be_bytes());
    covered.extend((-1_i32).to_be_bytes());
    covered.extend(1_i32.to_be_bytes());
    short_bytes(&mut covered, &record);

    let mut batch = Vec::new();
    batch.extend(0_i64.to_be_bytes());
    batch.extend(length(covered.len() + 9).to_be_bytes());
    batch.extend((-1_i32).to_be_bytes());
    batch.push(2);
    batch.extend(checksum(crc32c(&covered)).to_be_bytes());
    batch.extend(covered);
    batch
}

fn produce(broker: &str, (topic, partition): (&str, i32), batch: &[u8]) {
    let mut body = Vec::new();
    body.extend((-1_i16).to_be_bytes());
    body.extend((-1_i16).to_be_bytes());
    body.extend(10_000_i32.to_be_bytes());
    body.extend(1_i32.to_be_bytes());
    string(&mut body, topic.as_bytes());
    body.extend(1_i32.to_be_bytes());
    body.extend(partition.to_be_bytes());
    body.extend(length(batch.len()).to_be_bytes());
    body.extend(batch);
    let response = ask(broker, PRODUCE, &body);
    // Topics, the topic's name, partitions, the partition: then its error.
    let at = 4 + 2 + topic.len() + 4 + 4;
    assert_eq!(response[at..at + 2], [0, 0], "{response:?}");
}

/// Commits an offset with metadata of any bytes, for a group without members.
pub(crate) fn commit_with_metadata(
    broker: &str,
    group: &str,
    (topic, partition): (&str, i32),
    offset: i64,
    metadata: &[u8],
) {
    let mut body = Vec::new();
    string(&mut body, group.as_bytes());
    body.extend((-1_i32).to_be_bytes());
    string(&mut body, b"");
    body.extend((-1_i64).to_be_bytes());
    body.extend(1_i32.to_be_bytes());
    string(&mut body, topic.as_bytes());
    body.extend(1_i32.to_be_bytes());
    body.extend(partition.to_be_bytes());
    body.extend(offset.to_be_bytes());
    string(&mut body, metadata);
    let response = ask(broker, OFFSET_COMMIT, &body);
    assert!(response.ends_with(&[0, 0]), "{response:?}");
}

/// Sends a request and gives the body of its response.
fn ask(broker: &str, (key, version): (i16, i16), body: &[u8]) -> Vec<u8> {
    let mut request = Vec::new();
    request.extend(key.to_be_bytes());
    request.extend(version.to_be_bytes());
    request.extend(7_i32.to_be_bytes());
    string(&mut request, b"by-hand");
    request.extend(body);
    let mut connection = TcpStream::connect(broker).unwrap();
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    connection
        .write_all(&length(request.len()).to_be_bytes())
        .unwrap();
    connection.write_all(&request).unwrap();
    let mut size = [0; 4];
    connection.read_exact(&mut size).unwrap();
    let mut response = vec![0; usize::try_from(i32::from_be_bytes(size)).unwrap()];
    connection.read_exact(&mut response).unwrap();
    response.split_off(4)
}

fn length(bytes: usize) -> i32 {
    i32::try_from(bytes).unwrap()
}

fn string(to: &mut Vec<u8>, bytes: &[u8]) {
    to.extend(i16::try_from(bytes.len()).unwrap().to_be_bytes());
    to.extend(bytes);
}

/// Bytes behind their length, as records have them.
fn short_bytes(to: &mut Vec<u8>, bytes: &[u8]) {
    varint(to, bytes.len());
    to.extend(bytes);
}

fn varint(to: &mut Vec<u8>, value: usize) {
    let mut left = value << 1;
    while left >= 0x80 {
        to.push(u8::try_from(left & 0x7f).unwrap() | 0x80);
        left >>= 7;
    }
    to.push(u8::try_from(left).unwrap());
}

fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
    let byte = |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), step);
    !bytes.iter().fold(!0, byte)
}
