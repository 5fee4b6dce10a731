//! What an answer of the server means for the batch: the table from statuses to [`StoreError`]. Pure.

use qdrant_client::QdrantError;
use qdrant_client::qdrant::{PointsOperationResponse, UpdateStatus};
use tonic::{Code, Status};

use crate::store::StoreError;

/// Signs of a full or locked server, in its own words.
const FULL: [&str; 11] = [
    "No space left on device",
    "not enough space",
    "not enough free disk",
    "Not enough space available",
    "Disk quota exceeded",
    "Read-only file system",
    "write lock",
    "Max vector storage size",
    "Max payload storage size",
    "Max points",
    "Resident memory usage",
];
/// How the client begins where it cannot connect.
const NO_CONNECTION: &str = "Failed to connect to ";
/// Signs of a request that is too large, which some proxies answer as exhausted resources.
const TOO_LARGE: [&str; 2] = ["larger than max", "message length too large"];

pub(super) fn from_client(error: QdrantError) -> StoreError {
    match error {
        QdrantError::ResponseError { status }
        | QdrantError::ResourceExhaustedError { status, .. } => from_status(&status),
        QdrantError::Io(error) => StoreError::Transient(error.to_string()),
        QdrantError::InvalidUri(error) => StoreError::Fatal(format!("store.url: {error}")),
        other => StoreError::Fatal(other.to_string()),
    }
}

/// Whether the server does not know what was asked for.
pub(super) fn is_not_found(error: &QdrantError) -> bool {
    matches!(error, QdrantError::ResponseError { status } if status.code() == Code::NotFound)
}

pub(super) fn from_status(status: &Status) -> StoreError {
    let text = describe(status);
    let says = |signs: &[&str]| {
        let message = status.message().to_ascii_lowercase();
        signs
            .iter()
            .any(|sign| message.contains(&sign.to_ascii_lowercase()))
    };
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied if !says(&FULL) => StoreError::Fatal(
            format!("the store refuses our credentials ({text}); check store.api_key"),
        ),
        _ if says(&FULL) => StoreError::Full(text),
        _ if says(&TOO_LARGE) => StoreError::Rejected(text),
        Code::InvalidArgument | Code::OutOfRange => StoreError::Rejected(text),
        Code::NotFound => StoreError::Fatal(format!(
            "the collection is gone ({text}); create it with `tcbert-worker migrate apply`"
        )),
        Code::Unimplemented => StoreError::Fatal(format!(
            "what answers at store.url does not speak Qdrant's gRPC ({text}); is it the gRPC port, \
             usually 6334, of a Qdrant server?"
        )),
        Code::DataLoss | Code::AlreadyExists => StoreError::Fatal(text),
        Code::Ok
        | Code::Cancelled
        // A state of the server (recovery, a shard on the move), not of the batch.
        | Code::FailedPrecondition
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable
        | Code::Unauthenticated
        | Code::PermissionDenied => StoreError::Transient(text),
    }
}

/// The error without `key`, which a server may repeat in its message.
pub(super) fn redacted(error: StoreError, key: Option<&str>) -> StoreError {
    let Some(key) = key else {
        return error;
    };
    let without = |text: String| text.replace(key, "(secret)");
    match error {
        StoreError::Transient(text) => StoreError::Transient(without(text)),
        StoreError::Full(text) => StoreError::Full(without(text)),
        StoreError::Rejected(text) => StoreError::Rejected(without(text)),
        StoreError::Unstorable(text) => StoreError::Unstorable(without(text)),
        StoreError::Fatal(text) => StoreError::Fatal(without(text)),
    }
}

/// The cause at the bottom of nested errors that the client wrote out as Rust shows them: what a
/// system said stands in quotes, any other cause is the last name.
fn innermost(text: &str) -> &str {
    let text = text.trim_end_matches([')', '}', ' ', '(']);
    if let Some(quoted) = text.strip_suffix('"')
        && let Some(start) = quoted.rfind('"')
    {
        return quoted.get(start + 1..).unwrap_or(quoted);
    }
    text.rsplit(['(', ',', '{'])
        .next()
        .map_or(text, |last| last.trim_start_matches(" error:").trim())
}

/// Code and message; the metadata may hold what no log shall show.
fn describe(status: &Status) -> String {
    if status.message().starts_with(NO_CONNECTION) {
        return format!("no connection: {}", innermost(status.message()));
    }
    format!("{:?}: {}", status.code(), status.message())
}

/// Whether an answer without error says that the write is done: only Completed does.
pub(super) fn completed(response: &PointsOperationResponse) -> Result<(), StoreError> {
    let status = response
        .result
        .as_ref()
        .map_or(UpdateStatus::UnknownUpdateStatus, |result| result.status());
    match status {
        UpdateStatus::Completed => Ok(()),
        other => Err(StoreError::Transient(format!(
            "the write is not known to be done, its status is {}",
            other.as_str_name()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use qdrant_client::qdrant::UpdateResult;

    use super::*;

    fn kind(code: Code, message: &str) -> &'static str {
        match from_status(&Status::new(code, message)) {
            StoreError::Transient(_) => "transient",
            StoreError::Full(_) => "full",
            StoreError::Rejected(_) => "rejected",
            StoreError::Unstorable(_) => "unstorable",
            StoreError::Fatal(_) => "fatal",
        }
    }

    #[test]
    fn each_status_says_what_to_do() {
        for (code, message, expected) in [
            (Code::Unavailable, "connection refused", "transient"),
            (Code::DeadlineExceeded, "", "transient"),
            (Code::Cancelled, "Timeout expired", "transient"),
            (Code::ResourceExhausted, "rate limit", "transient"),
            (Code::Aborted, "", "transient"),
            (Code::FailedPrecondition, "", "transient"),
            (Code::Internal, "Service internal error", "transient"),
            (
                Code::Internal,
                "No space left on device (os error 28)",
                "full",
            ),
            (
                Code::InvalidArgument,
                "Wrong input: Vector dimension error",
                "rejected",
            ),
            (
                Code::InvalidArgument,
                "Max vector storage size limit reached",
                "full",
            ),
            (
                Code::InvalidArgument,
                "Resident memory usage is at 91% of the limit",
                "full",
            ),
            (
                Code::ResourceExhausted,
                "received message larger than max",
                "rejected",
            ),
            (Code::PermissionDenied, "write lock: disk", "full"),
            (Code::PermissionDenied, "read-only key", "fatal"),
            (Code::Unauthenticated, "", "fatal"),
            (Code::NotFound, "Collection `a` doesn't exist!", "fatal"),
        ] {
            assert_eq!(kind(code, message), expected, "{code:?} {message}");
        }
    }

    #[test]
    fn only_the_cause_of_a_failed_connection_is_told() {
        for (shown, cause) in [
            (
                "hyper::Error(Connect, ConnectError(\"tcp connect error\", 127.0.0.1:1, Os { code: 111, \
                 kind: ConnectionRefused, message: \"Connection refused\" })))",
                "Connection refused",
            ),
            (
                "ConnectError(\"dns error\", Custom { kind: Uncategorized, error: \"failed to lookup \
                 address information\" })))",
                "failed to lookup address information",
            ),
            (
                "Custom { kind: InvalidData, error: InvalidCertificate(UnknownIssuer) }))",
                "UnknownIssuer",
            ),
            ("TimeoutExpired(())))", "TimeoutExpired"),
            ("x", "x"),
        ] {
            let message = format!(
                "Failed to connect to http://h:1/: tonic::transport::Error(Transport, {shown}"
            );
            let error = from_status(&Status::new(Code::Internal, message));
            let expected = StoreError::Transient(format!("no connection: {cause}"));
            assert_eq!(error, expected);
        }
    }

    #[test]
    fn what_speaks_no_grpc_names_the_setting() {
        let text = from_status(&Status::new(Code::Unimplemented, "404")).to_string();
        assert!(
            text.contains("store.url") && text.contains("6334"),
            "{text}"
        );
    }

    #[test]
    fn no_message_repeats_the_key() {
        let error = from_status(&Status::new(Code::Unauthenticated, "bad key hunter2"));
        let text = redacted(error, Some("hunter2")).to_string();
        assert!(text.contains("bad key (secret)"), "{text}");
    }

    #[test]
    fn only_completed_is_done() {
        let answer = |status: UpdateStatus| PointsOperationResponse {
            result: Some(UpdateResult {
                operation_id: None,
                status: status.into(),
            }),
            ..PointsOperationResponse::default()
        };
        assert_eq!(completed(&answer(UpdateStatus::Completed)), Ok(()));
        for status in [
            UpdateStatus::WaitTimeout,
            UpdateStatus::Acknowledged,
            UpdateStatus::ClockRejected,
            UpdateStatus::UnknownUpdateStatus,
        ] {
            assert!(matches!(
                completed(&answer(status)),
                Err(StoreError::Transient(_))
            ));
        }
        let empty = PointsOperationResponse::default();
        assert!(completed(&empty).is_err());
    }
}
