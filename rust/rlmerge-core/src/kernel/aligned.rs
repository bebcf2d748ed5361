//! Memory that begins where a line of the processor's cache does: a register that straddles two lines takes twice the
//! time to load or to store.

use std::ops::{Deref, DerefMut};

/// Bytes in a line of the cache, and in the widest register.
const LINE: usize = 64;

/// An array that begins with a line.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
pub struct Aligned<T, const N: usize>([T; N]);

impl<T: Copy + Default, const N: usize> Default for Aligned<T, N> {
    fn default() -> Self {
        Self([T::default(); N])
    }
}

impl<T, const N: usize> Deref for Aligned<T, N> {
    type Target = [T; N];

    #[inline(always)]
    fn deref(&self) -> &[T; N] {
        &self.0
    }
}

impl<T, const N: usize> DerefMut for Aligned<T, N> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T; N] {
        &mut self.0
    }
}

/// Bytes that begin with a line, as many as were asked for last.
#[derive(Debug, Clone, Default)]
pub struct AlignedBytes {
    room: Vec<u8>,
    begin: usize,
    len: usize,
}

impl AlignedBytes {
    /// So many bytes, to be written: what is in them is of no use.
    pub fn of_length(&mut self, len: usize) -> &mut [u8] {
        if self.room.len() < len + LINE {
            self.room.resize(len + LINE, 0);
        }
        self.begin = self.room.as_ptr().align_offset(LINE) % LINE;
        self.len = len;
        &mut self.room[self.begin..self.begin + len]
    }
}

impl Deref for AlignedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.room[self.begin..self.begin + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_begin_with_a_line() {
        let arrays = [Aligned::<f32, 3>::default(); 2];
        assert!(arrays.iter().all(|array| array.as_ptr().align_offset(LINE) == 0));
        let mut bytes = AlignedBytes::default();
        assert!(bytes.is_empty());
        for len in [0, 1, 63, 5000, 64, 70_000] {
            let room = bytes.of_length(len);
            assert_eq!((room.len(), room.as_ptr().align_offset(LINE)), (len, 0));
            room.fill(len as u8);
            assert!(bytes.len() == len && bytes.iter().all(|byte| *byte == len as u8));
        }
        assert_eq!(&*bytes.clone(), &*bytes);
    }
}
