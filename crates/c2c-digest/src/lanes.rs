//! Advances several MD5 streams.

use md5::block_api::compress;

use crate::stream::{BLOCK, State};

/// One stream's part of a step: its state, and the whole blocks that follow.
pub(crate) struct Lane<'a> {
    pub(crate) state: &'a mut State,
    pub(crate) blocks: &'a [[u8; BLOCK]],
}

/// Takes each lane some blocks further and leaves the rest in its `blocks`; at least the shortest one is used up.
pub(crate) fn advance(lanes: &mut [Lane<'_>]) {
    for lane in lanes {
        compress(lane.state, lane.blocks);
        lane.blocks = &[];
    }
}
