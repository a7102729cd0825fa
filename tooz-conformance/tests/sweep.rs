//! The cancellation sweep, and that nothing drops out of it unseen.

use tooz_conformance::{sweep, targets};

#[test]
fn try_it() {
    let swept = sweep::run(&targets::memory::with_ttl(""), false);
    for s in &swept {
        println!("{:45} {:60} {:4} {} {:?}", s.operation, s.scene, s.points, s.lines.len(), s.failure);
    }
}
