//! placeholder
use tooz_conformance::simulation::{Plan, run};
#[test]
fn one() {
    let seeds: u64 = std::env::var("TOOZ_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(20);
    let first: u64 = std::env::var("TOOZ_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(0);
    let mut bad = 0;
    let mut met = tooz_conformance::simulation::Met::default();
    for seed in first..first+seeds {
        let r = run(&Plan::new(seed));
        met = met.and(r.met);
        if !r.violations.is_empty() {
            bad += 1;
            if seeds == 1 { println!("{}", r.report()); }
            for v in r.violations.iter().take(3) { println!("seed {seed}: {v}"); }
        }
    }
    println!("{met:?}");
    assert_eq!(bad, 0);
}
