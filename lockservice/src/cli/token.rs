//! `token`: bearer tokens.

use serde_json::json;

use super::args::TokenCommand;
use super::exit::{Failure, say_note};
use super::output::Output;
use crate::token::{TokenHash, new_token};

/// Runs `command`.
pub(crate) fn run(command: &TokenCommand, json: bool) -> Result<(), Failure> {
    match command {
        TokenCommand::New => new(json),
    }
}

/// Prints the token alone on stdout, so that it can be sent to a file.
fn new(json: bool) -> Result<(), Failure> {
    let token = new_token()?;
    let hash = TokenHash::of(&token).to_string();
    let output = Output::new(json);
    if json {
        return output.line(&json!({ "token": token, "token_sha256": hash }).to_string());
    }
    output.line(&token)?;
    say_note(false, &format!("the line for its [[identity]] is: token_sha256 = '{hash}'"));
    Ok(())
}
