//! Kernels in cache, in bytes of decoded input per second, at every SIMD level. Each benchmark checks its
//! answer against the naive oracle before it is timed.
//!
//! `cargo bench -p rlmerge-core`

use std::hint::black_box;

use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rlmerge_core::dtype::DType;
use rlmerge_core::kernel::lanes::Lanes;
use rlmerge_core::kernel::lowrank::{BLOCK, multiply, pack_left, pack_right};
use rlmerge_core::kernel::rng::{self, Stream};
use rlmerge_core::kernel::select::Selection;
use rlmerge_core::kernel::values::Values;
use rlmerge_core::kernel::{CHUNK, Level, combine, convert, naive};

/// Elements gone through in one iteration: a tile's worth of chunks that stay in cache.
const ELEMENTS: usize = 64 * CHUNK;

fn bf16(seed: u32) -> Vec<u8> {
    let mut state = seed;
    (0..CHUNK)
        .flat_map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let value = (f64::from(state) / f64::from(u32::MAX) - 0.5) as f32 * 0.04;
            ((value.to_bits() >> 16) as u16).to_le_bytes()
        })
        .collect()
}

fn in_cache(
    group: &mut BenchmarkGroup<'_, criterion::measurement::WallTime>,
    name: &str,
    level: Level,
    mut body: impl FnMut(),
) {
    group.bench_function(BenchmarkId::new(name, level.name()), |b| {
        b.iter(|| {
            for _ in 0..ELEMENTS / CHUNK {
                body();
            }
        });
    });
}

fn kernels(c: &mut Criterion) {
    let mut group = c.benchmark_group("kernels");
    // Bytes of one bf16 model, whatever the kernel reads.
    group.throughput(Throughput::Bytes(2 * ELEMENTS as u64));
    let (base_bytes, expert_bytes) = (bf16(1), bf16(2));
    for level in Level::available() {
        let (mut base, mut expert) = (Values::default(), Values::default());
        base.load(level, DType::BF16, &base_bytes, CHUNK, false);
        expert.load(level, DType::BF16, &expert_bytes, CHUNK, false);
        let mut delta = vec![0.0; CHUNK];
        expert.delta(level, &base, &mut delta);
        for (i, d) in delta.iter().enumerate() {
            let of = |bytes| naive::decode(DType::BF16, bytes, i);
            assert_eq!(*d, naive::delta(of(&expert_bytes), of(&base_bytes), false));
        }

        in_cache(&mut group, "decode bf16", level, || {
            base.load(level, DType::BF16, black_box(&base_bytes), CHUNK, false);
        });
        in_cache(&mut group, "delta", level, || expert.delta(level, black_box(&base), &mut delta));
        let mut sum = vec![0.0; CHUNK];
        let mut squares = Lanes::default();
        in_cache(&mut group, "add weighed", level, || {
            expert.add_weighed(level, black_box(0.5), 1.0, &mut sum, &mut squares);
        });
        in_cache(&mut group, "add weighed and divide", level, || {
            expert.add_weighed(level, black_box(0.5), 3.0, &mut sum, &mut squares);
        });
        let mut squares = Lanes::default();
        in_cache(&mut group, "add squares", level, || expert.add_squares(level, black_box(&mut squares)));
        let mut bytes = vec![0; 2 * CHUNK];
        convert::encode(level, DType::BF16, &delta, &mut bytes, &mut squares);
        for (i, d) in delta.iter().enumerate() {
            assert_eq!(bytes[2 * i..2 * i + 2], naive::encode(DType::BF16, *d));
        }
        in_cache(&mut group, "encode bf16", level, || {
            convert::encode(level, DType::BF16, black_box(&delta), &mut bytes, &mut squares);
        });
        // A chunk of eight rows times rank 16, from factors that stay in cache.
        let (rank, columns) = (16, CHUNK / BLOCK);
        let factor: Vec<f32> = (0..rank * columns).map(|i| (i % 97) as f32 - 48.0).collect();
        let (mut blocks, mut panels) = (Vec::new(), Vec::new());
        pack_left(&factor, BLOCK, rank, (rank, 1), &mut blocks);
        pack_right(&factor, rank, columns, (columns, 1), &mut panels);
        let mut product = vec![0.0; CHUNK];
        multiply(level, &blocks, &panels, rank, columns, 2.0, &mut product);
        for (i, p) in product.iter().enumerate() {
            let row = &factor[i / columns * rank..][..rank];
            assert_eq!(*p, naive::low_rank(row, |k| factor[k * columns + i % columns], 2.0));
        }
        in_cache(&mut group, "product of rank 16", level, || {
            multiply(level, black_box(&blocks), black_box(&panels), rank, columns, 2.0, &mut product);
        });
        let (stream, limit) = (Stream::new(0, 0, "w"), rng::threshold(0.3));
        in_cache(&mut group, "random mask", level, || {
            black_box(rng::kept(level, black_box(stream), 0, CHUNK, limit));
        });
        let (mut kept, mut squares) = (delta.clone(), Lanes::default());
        let mask = rng::kept(level, stream, 0, CHUNK, limit);
        in_cache(&mut group, "pick delta", level, || {
            expert.pick_delta(level, black_box(&base), &mask, 1.0, &mut kept, &mut squares);
        });

        // The window that a fair sample of these deltas proposes: about one key in fifty falls into it.
        let mut selection = Selection::new(ELEMENTS as u64 / 5, 1 << 20, false);
        let mut sorted: Vec<f64> = delta.iter().map(|d| d.abs()).collect();
        sorted.sort_by(f64::total_cmp);
        let (low, high) = (sorted[CHUNK * 79 / 100], sorted[CHUNK * 81 / 100]);
        let sample: Vec<f64> = (0..4096).map(|i| if i % 5 < 4 { low } else { high }).collect();
        selection.propose(&sample, ELEMENTS as u64);
        let mut tally = selection.tally();
        in_cache(&mut group, "count for a selection", level, || {
            selection.count(level, black_box(&expert), &base, &mut tally);
        });
        let mut squares = Lanes::default();
        in_cache(&mut group, "cut delta", level, || {
            expert.cut_delta(
                level,
                black_box(&base),
                0.01f64.to_bits(),
                false,
                1.0,
                &mut delta,
                &mut squares,
            );
        });
        in_cache(&mut group, "count ties", level, || {
            black_box(expert.count_deltas_at(level, black_box(&base), 0.01f64.to_bits()));
        });
        let mut out = vec![0.0; CHUNK];
        in_cache(&mut group, "base plus changes of two", level, || {
            base.add_changes(level, black_box(&delta), &kept, 1.0, 1.0, &mut out);
        });
        let both: Vec<f64> = delta.iter().chain(&kept).copied().collect();
        let mut mix = vec![0.0; CHUNK];
        in_cache(&mut group, "disjoint merge of two", level, || {
            combine::merge_disjoint(level, (black_box(&both), CHUNK), &[1.0, 1.0], true, true, &mut mix);
        });
    }
    group.finish();
}

criterion_group!(benches, kernels);
criterion_main!(benches);
