//! The floating-point environment that all arithmetic here takes for granted.
#![allow(unsafe_code, reason = "a control register is read and written by assembly alone")]

/// While it lives, this thread computes as IEEE 754 says: to nearest even, with subnormal numbers. Other libraries in
/// the process may have asked for something else (flushing subnormals to zero is faster), and threads that are started
/// take over what holds here. When it is dropped, what was before is restored.
#[derive(Debug)]
pub struct PlainFloats {
    #[cfg(target_arch = "x86_64")]
    before: u32,
    /// The register is this thread's.
    _here: std::marker::PhantomData<*const ()>,
}

impl PlainFloats {
    /// All exceptions masked, round to nearest, nothing flushed: what the compiler takes for granted.
    #[cfg(target_arch = "x86_64")]
    const MXCSR: u32 = 0x1f80;

    /// Asks for plain floats.
    #[must_use]
    pub fn ask() -> Self {
        #[cfg(target_arch = "x86_64")]
        let before = {
            let (mut before, plain) = (0u32, Self::MXCSR);
            // SAFETY: stores a register to a variable and loads it with the value that Rust expects there.
            unsafe {
                std::arch::asm!(
                    "stmxcsr [{before}]", "ldmxcsr [{plain}]",
                    before = in(reg) &raw mut before, plain = in(reg) &raw const plain,
                    options(nostack, preserves_flags)
                );
            }
            before
        };
        Self {
            #[cfg(target_arch = "x86_64")]
            before,
            _here: std::marker::PhantomData,
        }
    }
}

impl Drop for PlainFloats {
    fn drop(&mut self) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: loads what was there before; its other bits are no more than flags of past exceptions.
        unsafe {
            std::arch::asm!(
                "ldmxcsr [{before}]", before = in(reg) &raw const self.before,
                options(nostack, preserves_flags, readonly)
            );
        }
    }
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn floats_are_plain_for_a_time_and_for_threads_begun_then() {
        use std::hint::black_box;
        let half = || black_box(f32::MIN_POSITIVE) * black_box(0.5);
        let flush: u32 = 0x9fc0;
        let outer = super::PlainFloats::ask();
        // SAFETY: subnormals are flushed in this thread until `outer` restores what was; the numbers here go through
        // the processor and not through the compiler.
        unsafe { std::arch::asm!("ldmxcsr [{f}]", f = in(reg) &raw const flush, options(nostack, readonly)) };
        let flushed = half();
        let plain = super::PlainFloats::ask();
        let (here, there) = (half(), std::thread::spawn(half).join().unwrap());
        drop(plain);
        let again = half();
        drop(outer);
        assert_eq!((flushed, again), (0.0, 0.0));
        assert_eq!((here, there), (f32::from_bits(0x0040_0000), f32::from_bits(0x0040_0000)));
    }
}
