//! Replays the inputs that a fuzzer found worth keeping: see `integration/fuzz`.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use lockservice::fuzzing::TARGETS;

#[test]
fn every_input_of_the_corpus_is_read_or_refused() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../integration/fuzz/corpus");
    let mut folders: HashSet<_> = fs::read_dir(&corpus)
        .expect("the corpus is in this repository")
        .map(|folder| folder.expect("readable").file_name())
        .collect();
    for (name, target) in TARGETS {
        folders.remove(std::ffi::OsStr::new(name));
        let inputs = fs::read_dir(corpus.join(name)).expect("each target has inputs");
        let mut count = 0;
        for input in inputs {
            let path = input.expect("readable").path();
            let bytes = fs::read(&path).expect("readable");
            // The test's output names the input that fails.
            println!("{}", path.display());
            target(&bytes);
            count += 1;
        }
        assert!(count > 0, "the target {name} has no inputs");
    }
    assert!(folders.is_empty(), "no target reads {folders:?}");
}
