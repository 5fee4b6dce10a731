//! A topic that was deleted and created again over a store that remembers the first one: its offsets begin
//! anew, and what is stored would win over what comes.

use std::process::Output;

use crate::backfill::Ground;
use crate::processes;
use crate::support::{broker, documents};

fn refused(output: &Output) {
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains("deleted and created again"), "{log}");
    assert!(log.contains("store.collection"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_of_an_earlier_topic_do_not_win_in_silence() {
    let mut ground = Ground::new(2);
    ground.produce(&documents("doc", 100));
    let all = ["backfill", "--json", "--offsets", "0:..,1:.."];
    assert!(ground.run(&all).status.success());
    // The same topic, read once more by a group that has committed nothing, is none of that.
    assert!(ground.run(&all).status.success());

    ground.broker = broker(2);
    ground.produce(&documents("doc", 10));
    refused(&ground.run(&["run"]));
    refused(&ground.run(&["run", "--accept-gap"]));
    refused(&ground.run(&all));
    let mut elsewhere = ground.command(&all);
    elsewhere.env("TCBERT__STORE__COLLECTION", "second");
    let output = processes::run(&mut elsewhere);
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    assert_eq!(
        ground.points().await,
        100,
        "the first collection is as it was"
    );
}
