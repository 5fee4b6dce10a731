//! What earlier versions of this program wrote stays readable: a store of commit 0425910 is opened,
//! searched and written to.
//!
//! `tests/stored/store-0425910.files.zst` is the folder of an embedded store after a backfill of three
//! lines: for each file a line `path TAB bytes TAB kept bytes`, then the kept bytes; what is cut off are
//! zeros, of which the engine's mapped files mostly consist.

use std::fs::{self, File};
use std::io::{BufRead, Read, Write};
use std::path::Path;

use serde_json::json;
use tcbert_worker::store::PointFilter;

use crate::versions::Place;

fn unpack(archive: &str, folder: &Path) {
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join(archive);
    let bytes = zstd::decode_all(File::open(archive).unwrap()).unwrap();
    let mut bytes = bytes.as_slice();
    loop {
        let mut line = String::new();
        if bytes.read_line(&mut line).unwrap() == 0 {
            return;
        }
        let parts: Vec<&str> = line.trim_end().split('\t').collect();
        let [path, length, kept] = parts.as_slice() else {
            panic!("{line}");
        };
        let path = folder.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut content = vec![0; kept.parse().unwrap()];
        bytes.read_exact(&mut content).unwrap();
        let mut file = File::create(path).unwrap();
        file.write_all(&content).unwrap();
        file.set_len(length.parse().unwrap()).unwrap();
    }
}

#[tokio::test]
async fn a_store_of_commit_0425910_is_searched_and_written_to() {
    let place = Place::new(&[]);
    unpack("tests/stored/store-0425910.files.zst", &place.path("store"));
    let kept = place.stored("kept").await;
    assert_eq!(kept["title"], "央行下调存款准备金率");
    assert!(!kept.contains_key("version_order"));
    assert_eq!(place.stored("plain").await["version"], 0);
    assert_eq!(
        place.stored("future").await["version"],
        4_102_358_400_000_i64
    );

    let found = place.run(&["search", "--json", "央行降准"]);
    assert!(found.contains("央行下调存款准备金率"), "{found}");

    let lines = [
        json!({"id": "kept", "title": "更旧", "published_at": "2024-02-05T08:59:59Z"}),
        // Neither has a time, and the stored one has no order.
        json!({"id": "plain", "title": "新版"}),
        json!({"id": "future", "title": "更正", "published_at": "2024-02-05T09:00:00Z"}),
        json!({"id": "new", "title": "另一条新闻"}),
    ];
    let input = place.write("more.jsonl", &lines);
    let (report, _) = place.backfill(&[&input]);
    assert_eq!(report["written"], 3, "{report}");
    assert_eq!(report["superseded"], 1, "{report}");
    for (id, title) in [
        ("kept", "央行下调存款准备金率"),
        ("plain", "新版"),
        ("future", "更正"),
        ("new", "另一条新闻"),
    ] {
        assert_eq!(place.stored(id).await["title"], title, "{id}");
    }
    let store = place.store().await;
    assert_eq!(store.count(PointFilter::default()).await, Ok(4));
    store.close().await.unwrap();
}
