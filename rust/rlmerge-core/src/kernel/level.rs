//! SIMD levels: every kernel is written once and compiled for each level; the level is chosen once
//! at run time.
//!
//! A level changes speed only, never a bit of the result: reductions use a fixed number of lanes
//! and no operation contracts to a fused multiply-add: the compiler never does so by itself, and where one is
//! wanted it is spelt `mul_add`, which rounds once at every level.

/// An instruction set that this processor has. Values exist only for sets that were detected.
/// By default the baseline.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Level(Isa);

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[doc(hidden)]
pub enum Isa {
    #[default]
    Baseline,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Level {
    /// What the compiler may assume of every processor of this architecture.
    pub const BASELINE: Self = Self(Isa::Baseline);

    /// All levels of this processor, the fastest last.
    #[must_use]
    pub fn available() -> Vec<Self> {
        #[allow(unused_mut, reason = "other architectures have the baseline only")]
        let mut levels = vec![Self::BASELINE];
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = std::arch::is_x86_feature_detected!("avx2")
                && std::arch::is_x86_feature_detected!("popcnt")
                && std::arch::is_x86_feature_detected!("bmi1")
                && std::arch::is_x86_feature_detected!("fma");
            if avx2 {
                levels.push(Self(Isa::Avx2));
            }
            if avx2
                && std::arch::is_x86_feature_detected!("avx512f")
                && std::arch::is_x86_feature_detected!("avx512bw")
                && std::arch::is_x86_feature_detected!("avx512dq")
                && std::arch::is_x86_feature_detected!("avx512vl")
            {
                levels.push(Self(Isa::Avx512));
            }
        }
        levels
    }

    /// The level to use: the fastest, or the one named by the environment variable `RLMERGE_SIMD`
    /// (`scalar`, `avx2`, `avx512`) when this processor has it.
    #[must_use]
    pub fn choose() -> Self {
        let levels = Self::available();
        let wanted = std::env::var("RLMERGE_SIMD").unwrap_or_default();
        let named = levels.iter().copied().find(|l| l.name() == wanted);
        named.or_else(|| levels.last().copied()).unwrap_or(Self::BASELINE)
    }

    /// Its name in reports and in `RLMERGE_SIMD`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self.0 {
            Isa::Baseline => "scalar",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => "avx512",
        }
    }

    #[doc(hidden)]
    #[must_use]
    #[inline(always)]
    pub const fn isa(self) -> Isa {
        self.0
    }
}

/// Asks the processor to bring bytes into its cache. Chunks of several models alternate too quickly for
/// its own prefetchers, which start anew at every chunk.
#[inline]
pub fn prefetch(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes.chunks(64) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        #[allow(unsafe_code, reason = "the intrinsic takes a raw pointer")]
        // SAFETY: a prefetch has no effect on memory and faults on no address.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
}

/// Loads and stores of whole registers, for kernels that are written with intrinsics.
#[cfg(target_arch = "x86_64")]
pub(crate) mod registers {
    use std::arch::x86_64::*;

    macro_rules! registers {
        ($features:literal, $register:ty, [$number:ty; $count:literal] $(, $load:ident = $from:ident)? $(=> $store:ident = $into:ident)?) => {
            $(
            /// The numbers in a register.
            #[must_use]
            #[inline]
            #[target_feature(enable = $features)]
            #[allow(unsafe_code, reason = "the intrinsic takes a raw pointer")]
            pub fn $load(numbers: &[$number; $count]) -> $register {
                // SAFETY: the reference is to as many bytes as are read, which need no alignment.
                unsafe { $from(numbers.as_ptr().cast()) }
            }
            )?

            $(
            /// The numbers out of a register.
            #[inline]
            #[target_feature(enable = $features)]
            #[allow(unsafe_code, reason = "the intrinsic takes a raw pointer")]
            pub fn $store(register: $register, numbers: &mut [$number; $count]) {
                // SAFETY: the reference is to as many bytes as are written, which need no alignment.
                unsafe { $into(numbers.as_mut_ptr().cast(), register) }
            }
            )?
        };
    }

    registers!("avx2", __m256, [f32; 8], load_256 = _mm256_loadu_ps => store_256 = _mm256_storeu_ps);
    registers!("avx512f", __m512, [f32; 16], load_512 = _mm512_loadu_ps => store_512 = _mm512_storeu_ps);
    registers!(
        "avx512f",
        __m512d,
        [f64; 8],
        load_512_wide = _mm512_loadu_pd => store_512_wide = _mm512_storeu_pd
    );
    registers!("avx512f", __m512i, [u32; 16] => store_512_bits = _mm512_storeu_si512);
    registers!("avx512f", __m128i, [u8; 16] => store_128_bytes = _mm_storeu_si128);
    registers!("avx512f", __m256i, [u8; 32], load_256_bytes = _mm256_loadu_si256);
    registers!("avx512f", __m512i, [u8; 64], load_512_bytes = _mm512_loadu_si512);

    /// The numbers out of a register from `at` on, where a whole register has room.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn put_512(register: __m512, numbers: &mut [f32], at: usize) {
        let Some(room) = numbers[at..].first_chunk_mut() else {
            unreachable!("there is room for a whole register behind what may be written");
        };
        store_512(register, room);
    }
}

/// Defines a kernel: a function whose body is compiled for every level and called at the level that
/// comes first among its arguments. The body knows as `FUSED` whether the level has a fused multiply-add, to be used where
/// products are exact, so that it rounds as a product and a sum do.
macro_rules! kernel {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments, reason = "kernels take plain slices and numbers")]
        $vis fn $name(level: $crate::kernel::Level, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments, reason = "kernels take plain slices and numbers")]
            fn body<const FUSED: bool>($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,popcnt,bmi1,fma")]
            #[allow(clippy::too_many_arguments, reason = "kernels take plain slices and numbers")]
            fn avx2($($arg: $ty),*) $(-> $ret)? { body::<true>($($arg),*) }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,fma")]
            #[allow(clippy::too_many_arguments, reason = "kernels take plain slices and numbers")]
            fn avx512($($arg: $ty),*) $(-> $ret)? { body::<true>($($arg),*) }

            #[allow(unsafe_code, reason = "calling a function compiled for a detected instruction set")]
            match level.isa() {
                $crate::kernel::level::Isa::Baseline => body::<false>($($arg),*),
                #[cfg(target_arch = "x86_64")]
                // SAFETY: a `Level` exists only for instruction sets that were detected.
                $crate::kernel::level::Isa::Avx2 => unsafe { avx2($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                $crate::kernel::level::Isa::Avx512 => unsafe { avx512($($arg),*) },
            }
        }
    };
}
pub(crate) use kernel;

/// Defines a function that calls one of three, at the level that comes first among its arguments: for kernels that
/// are written once for each level.
macro_rules! by_level {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $baseline:path, $avx2:path, $avx512:path;) => {
        $(#[$meta])*
        $vis fn $name(level: $crate::kernel::Level, $($arg: $ty),*) $(-> $ret)? {
            #[allow(unsafe_code, reason = "calling a function compiled for a detected instruction set")]
            #[allow(unused_unsafe, reason = "a level may use the baseline's function")]
            match level.isa() {
                $crate::kernel::level::Isa::Baseline => $baseline($($arg),*),
                #[cfg(target_arch = "x86_64")]
                // SAFETY: a `Level` exists only for instruction sets that were detected.
                $crate::kernel::level::Isa::Avx2 => unsafe { $avx2($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                $crate::kernel::level::Isa::Avx512 => unsafe { $avx512($($arg),*) },
            }
        }
    };
}
pub(crate) use by_level;
