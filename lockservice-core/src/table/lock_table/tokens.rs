//! The fencing tokens of a table: the blocks that its owner draws from (F2).

use std::collections::VecDeque;

use crate::bind::TokenBlock;
use crate::id::FencingToken;

/// See the module.
#[derive(Debug, Default)]
pub(in crate::table) struct Tokens {
    /// Blocks that are not used up, in rising order.
    blocks: VecDeque<TokenBlock>,
    /// The end of the last block.
    end: FencingToken,
    /// The last token that was taken for a call of the state.
    last: FencingToken,
}

impl Tokens {
    /// Adds a block. The part of it below an earlier block is left out, for tokens only grow (F1).
    pub(in crate::table) fn add(&mut self, mut block: TokenBlock) {
        block.next = block.next.max(self.end);
        if block.next < block.end {
            self.end = block.end;
            self.blocks.push_back(block);
        }
    }

    /// Draws the next token, if there is one.
    pub(in crate::table) fn take(&mut self) -> Option<FencingToken> {
        let block = self.blocks.front_mut()?;
        let token = block.take();
        if block.left() == 0 {
            self.blocks.pop_front();
        }
        self.last = token.unwrap_or(self.last);
        token
    }

    /// The last token that was [taken](Self::take).
    pub(in crate::table) const fn last(&self) -> FencingToken {
        self.last
    }

    /// Draws at most `most` tokens in a row, if there are any.
    pub(in crate::table) fn take_block(&mut self, most: u64) -> Option<TokenBlock> {
        let block = self.blocks.front_mut()?;
        let end = FencingToken::new(block.next.get() + most.min(block.left()));
        let drawn = TokenBlock { next: std::mem::replace(&mut block.next, end), end };
        if planted!(TokenUsedTwice) {
            block.next = drawn.next;
        }
        if block.left() == 0 {
            self.blocks.pop_front();
        }
        Some(drawn)
    }

    /// The next token. If no token is left, it is the first one that a later block can have.
    pub(in crate::table) fn next(&self) -> FencingToken {
        self.blocks.front().map_or(self.end, |block| block.next)
    }

    /// The number of tokens that are left.
    pub(in crate::table) fn remaining(&self) -> u64 {
        self.blocks.iter().map(TokenBlock::left).sum()
    }
}
