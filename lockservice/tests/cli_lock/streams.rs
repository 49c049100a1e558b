//! Standard streams and environment of the command and of the wrapper.

use crate::cli_support::{Running, Server, code, full_pipe, stderr};

#[test]
fn standard_input_reaches_the_command() {
    let server = Server::start();
    let file = server.folder.path().join("input");
    std::fs::write(&file, "through\n").unwrap();
    let mut command = server.command(&["lock", "t", "k", "--", "cat"]);
    let output = command.stdin(std::fs::File::open(&file).unwrap()).output().unwrap();
    assert_eq!(output.stdout, b"through\n");
}

#[test]
fn a_wrapper_whose_stderr_has_no_reader_says_nothing_and_ends_as_it_should() {
    let server = Server::start();
    let (_holder, _) = server.hold(&["t", "k"]);
    let (_reader, writer) = full_pipe();
    let refused = ["lock", "t", "k", "--no-wait", "--", "true"];
    let mut wrapper =
        Running::start_with_stderr(&mut server.command(&refused), writer.try_clone().unwrap());
    assert_eq!(wrapper.wait().0.code(), Some(75));
    // Nor do the words of the last step before the command keep it.
    let missing = ["lock", "t", "other", "--", "no-such-command"];
    wrapper = Running::start_with_stderr(&mut server.command(&missing), writer);
    assert_eq!(wrapper.wait().0.code(), Some(127));
    assert_eq!(
        code(&server.run(&["lock", "t", "other", "--no-wait", "--", "true"])),
        0,
        "it was released"
    );
}

#[test]
fn the_command_learns_what_is_locked() {
    let server = Server::start();
    let script = r#"echo "$LOCKSERVICE_GROUP $LOCKSERVICE_TABLE"; echo "$LOCKSERVICE_KEYS""#;
    for (args, expected) in [
        (&["a key", "b", "--key=--c"][..], "g t\na key\nb\n--c\n"),
        (&["--range", "", "m"], "g t\n\nm\n"),
        (&["--from=k"], "g t\nk\n\n"),
    ] {
        let output = server
            .run(&[&["lock", "--group", "g", "t"], args, &["--", "sh", "-c", script]].concat());
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            expected,
            "{args:?}: {}",
            stderr(&output)
        );
    }
}
