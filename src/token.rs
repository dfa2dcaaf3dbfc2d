//! What the kernel hands back with an event: (kind, generation, slot) in one `u64`. Knows nothing of what sits in a slot.
//!
//! A slot is used again and again; its generation is not. An event that was in flight for a former tenant carries the
//! former generation and is recognized as stale: that is expected, not an error.

use std::fmt;
use std::num::NonZeroU64;

/// What a registered descriptor is. None is 0, so that no token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// A child's pidfd.
    Child = 1,
    /// Our end of a child's stdin, stdout, stderr.
    Stdin = 2,
    Stdout = 3,
    Stderr = 4,
    /// A context's eventfd.
    Context = 5,
    /// The descriptor that a context watches.
    Source = 6,
    /// The reactor's own: its eventfd, its timerfd, a nested reactor.
    Wake = 7,
    Nested = 8,
    /// The `cgroup.events` of a child's own cgroup.
    Tree = 9,
    /// A stream that a future reads or writes.
    Port = 10,
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

/// As many as there are process ids at most.
const SLOT_BITS: u32 = 22;
/// At 20,000 children a second they last for 159 days; then a token may be like one that was there 274,877,906,944 before it.
const GENERATION_BITS: u32 = 38;
const GENERATION_MASK: u64 = (1 << GENERATION_BITS) - 1;
const KIND_SHIFT: u32 = GENERATION_BITS + SLOT_BITS;
/// How many slots a table may have.
pub(crate) const SLOTS_MAX: usize = 1 << SLOT_BITS;

/// (kind, generation, slot), packed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Token(NonZeroU64);

impl Token {
    /// `slot` is below [`SLOTS_MAX`].
    pub(crate) fn new(kind: Kind, generation: u64, slot: u32) -> Token {
        debug_assert!((slot as usize) < SLOTS_MAX);
        let low = (generation & GENERATION_MASK) << SLOT_BITS | u64::from(slot);
        Token(kind.bits() | low)
    }

    pub(crate) fn kind(self) -> Kind {
        KINDS[(self.0.get() >> KIND_SHIFT) as usize - 1]
    }

    pub(crate) fn generation(self) -> u64 {
        self.0.get() >> SLOT_BITS & GENERATION_MASK
    }

    pub(crate) fn slot(self) -> u32 {
        self.0.get() as u32 & (SLOTS_MAX as u32 - 1)
    }

    /// The same slot, seen through another of its descriptors.
    pub(crate) fn of_kind(self, kind: Kind) -> Token {
        Token::new(kind, self.generation(), self.slot())
    }

    pub(crate) fn pack(self) -> u64 {
        self.0.get()
    }

    /// `None` for what no token was packed to.
    pub(crate) fn unpack(packed: u64) -> Option<Token> {
        let kind = packed >> KIND_SHIFT;
        NonZeroU64::new(packed).filter(|_| (1..=KINDS.len() as u64).contains(&kind)).map(Token)
    }
}

impl Kind {
    fn bits(self) -> NonZeroU64 {
        NonZeroU64::new((self as u64) << KIND_SHIFT).expect("no kind is 0")
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}.{}", self.kind(), self.slot(), self.generation())
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
        write!(f, "ChildId({}.{})", self.0.slot(), self.0.generation())
    }
}

/// As text, `slot.generation`: what logs can be searched for.
#[cfg(feature = "serde")]
impl serde::Serialize for ChildId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}.{}", self.0.slot(), self.0.generation()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_round_trips_at_every_edge() {
        for kind in KINDS {
            for generation in [0, 1, GENERATION_MASK] {
                for slot in [0, 1, SLOTS_MAX as u32 - 1] {
                    let token = Token::new(kind, generation, slot);
                    assert_eq!((token.kind(), token.generation(), token.slot()), (kind, generation, slot));
                    assert_eq!(Token::unpack(token.pack()), Some(token));
                }
            }
        }
        assert_eq!(Token::unpack(0), None);
        assert_eq!(Token::unpack(u64::MAX), None);
    }

    #[test]
    fn a_generation_that_wraps_stays_in_its_bits() {
        let token = Token::new(Kind::Nested, GENERATION_MASK + 1, 7);
        assert_eq!((token.kind(), token.generation(), token.slot()), (Kind::Nested, 0, 7));
    }

    #[test]
    fn a_former_tenants_token_differs() {
        let former = Token::new(Kind::Child, 1, 3);
        assert_ne!(former.pack(), Token::new(Kind::Child, 2, 3).pack());
        assert_ne!(former.pack(), former.of_kind(Kind::Stdout).pack());
    }
}
