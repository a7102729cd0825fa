#![doc = include_str!("../README.md")]
#![doc(html_root_url = "https://docs.rs/tooz-local")]

#[cfg(not(target_os = "linux"))]
compile_error!("tooz-local needs Linux: open-file-description locks and /proc tell who lives");

pub mod error;
pub mod examine;
pub mod fence;
pub mod file_id;
pub mod filesystem;
pub mod liveness;
pub mod options;
pub mod os_lock;
pub mod ownership;
pub mod process;
