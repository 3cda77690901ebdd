//! Numbers that stand for something in the engine. They stay small, for the engine indexes by them, and one that became free
//! rests for a while, so that nothing that still remembers it takes a stranger for what it knew.

use std::collections::VecDeque;

/// How many free numbers rest before the oldest of them is used again.
const REST: usize = 256;

#[derive(Debug, Default)]
pub(crate) struct Numbers {
    next: u32,
    free: VecDeque<u32>,
}

impl Numbers {
    pub(crate) fn take(&mut self) -> u32 {
        if self.free.len() > REST
            && let Some(number) = self.free.pop_front()
        {
            return number;
        }
        self.next += 1;
        self.next - 1
    }

    pub(crate) fn give(&mut self, number: u32) {
        self.free.push_back(number);
    }
}

#[cfg(test)]
mod tests {
    use super::{Numbers, REST};

    #[test]
    fn a_number_rests_and_comes_back() {
        let mut numbers = Numbers::default();
        let first = numbers.take();
        numbers.give(first);
        for _ in 0..10 * REST {
            let other = numbers.take();
            numbers.give(other);
        }
        assert!(numbers.next <= u32::try_from(REST).unwrap() + 2);
    }
}
