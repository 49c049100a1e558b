//! The controlling terminal: who reads from it and whom Ctrl-C reaches.

use std::io;

use nix::sys::signal::{SigSet, Signal};
use rustix::process::{Pid, getpgrp};
use rustix::termios::{isatty, tcgetpgrp, tcsetpgrp};

/// True if stdin is a terminal and this process's group is in its foreground.
pub(crate) fn in_foreground() -> bool {
    has_foreground(getpgrp())
}

/// True if stdin is a terminal and `group` is in its foreground.
pub(crate) fn has_foreground(group: Pid) -> bool {
    isatty(rustix::stdio::stdin()) && tcgetpgrp(rustix::stdio::stdin()).is_ok_and(|current| current == group)
}

/// Makes `group` the terminal's foreground group.
pub(crate) fn give_to(group: Pid) -> io::Result<()> {
    // A process of the background that does this is stopped by SIGTTOU, unless it blocks that.
    let mut ttou = SigSet::empty();
    ttou.add(Signal::SIGTTOU);
    let before = ttou.thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK)?;
    let result = tcsetpgrp(rustix::stdio::stdin(), group);
    before.thread_set_mask()?;
    Ok(result?)
}
