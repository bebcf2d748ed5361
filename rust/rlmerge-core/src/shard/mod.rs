//! Reading checkpoints: headers and indexes are parsed strictly, tensor bytes are mapped.
//!
//! Everything in a model is hostile here: header, index, configuration, names and the kind of file
//! behind a path. Metadata is parsed from owned copies, never from the mapping, and opening a
//! checkpoint touches no tensor byte.

mod adapter;
mod checkpoint;
mod composed;
mod config;
mod entry;
mod file_system;
mod folder;
mod guard;
mod header;
mod heads;
mod index;
mod inspect;
mod links;
mod mapping;
mod quantised;
mod sniff;
mod source;
mod strict;

pub use adapter::{Adapter, AdapterConfig, is_adapter};
pub use checkpoint::{Checkpoint, Kind, Tensor};
pub use composed::{Change, Factor, Parts, Stored, compose};
pub use config::ConfigFacts;
pub use header::{Header, HeaderTensor, MAX_HEADER_BYTES, MAX_RANK, MAX_TENSORS, read_header};
pub use heads::{is_embedding, is_head, tied_embedding};
pub use index::{Index, read_index};
pub use inspect::inspect;
pub use links::refuse_links;
pub use mapping::Mapping;
pub use quantised::quantised;
pub use source::{FileIdentity, Shard, read_report, read_report_file};
