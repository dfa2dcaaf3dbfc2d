//! What the kernel hands back with an event: (kind, generation, slot) in one `u64`. Knows nothing of what sits in a slot.
//!
//! A slot is used again and again; its generation is not. An event that was in flight for a former tenant carries the
//! former generation and is recognized as stale: that is expected, not an error.

use std::fmt;

/// What a registered descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// A child's pidfd.
    Child = 0,
    /// Our end of a child's stdin, stdout, stderr.
    Stdin = 1,
    Stdout = 2,
    Stderr = 3,
    /// A context's eventfd.
    Context = 4,
    /// The descriptor that a context watches.
    Source = 5,
    /// The reactor's own: its eventfd, its timerfd, a nested reactor.
    Wake = 6,
    Nested = 7,
    /// The `cgroup.events` of a child's own cgroup.
    Tree = 8,
    /// A stream that a future reads or writes.
    Port = 9,
}

const KINDS: [Kind; 10] = [
    Kind::Child,
    Kind::Stdin,
    Kind::Stdout,
    Kind::Stderr,
    Kind::Context,
    Kind::Source,
    Kind::Wake,
    Kind::Nested,
    Kind::Tree,
    Kind::Port,
];

const GENERATION_BITS: u32 = 28;
const GENERATION_MASK: u32 = (1 << GENERATION_BITS) - 1;

/// (kind, generation, slot).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Token {
    pub(crate) kind: Kind,
    pub(crate) generation: u32,
    pub(crate) slot: u32,
}

impl Token {
    pub(crate) fn new(kind: Kind, generation: u32, slot: u32) -> Token {
        Token { kind, generation: generation & GENERATION_MASK, slot }
    }

    /// The same slot, seen through another of its descriptors.
    pub(crate) fn of_kind(self, kind: Kind) -> Token {
        Token { kind, ..self }
    }

    pub(crate) fn pack(self) -> u64 {
        (self.kind as u64) << 60 | u64::from(self.generation) << 32 | u64::from(self.slot)
    }

    pub(crate) fn unpack(packed: u64) -> Token {
        Token {
            kind: KINDS[(packed >> 60) as usize],
            generation: (packed >> 32) as u32 & GENERATION_MASK,
            slot: packed as u32,
        }
    }
}

/// Names a child of a [`Reactor`](crate::Reactor) or a driver; never used again for another one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChildId(pub(crate) Token);

impl ChildId {
    pub(crate) fn new(token: Token) -> ChildId {
        ChildId(token)
    }
}

impl fmt::Debug for ChildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChildId({}.{})", self.0.slot, self.0.generation)
    }
}

/// As text, `slot.generation`: what logs can be searched for.
#[cfg(feature = "serde")]
impl serde::Serialize for ChildId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}.{}", self.0.slot, self.0.generation))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_round_trips_at_every_edge() {
        for kind in KINDS {
            for generation in [0, 1, GENERATION_MASK] {
                for slot in [0, 1, u32::MAX] {
                    let token = Token::new(kind, generation, slot);
                    assert_eq!(Token::unpack(token.pack()), token);
                }
            }
        }
    }

    #[test]
    fn a_generation_that_wraps_stays_in_its_bits() {
        let token = Token::new(Kind::Nested, GENERATION_MASK + 1, 7);
        assert_eq!(token.generation, 0);
        assert_eq!(Token::unpack(token.pack()), token);
    }

    #[test]
    fn a_former_tenants_token_differs() {
        let former = Token::new(Kind::Child, 1, 3);
        assert_ne!(former.pack(), Token::new(Kind::Child, 2, 3).pack());
        assert_ne!(former.pack(), former.of_kind(Kind::Stdout).pack());
    }
}
