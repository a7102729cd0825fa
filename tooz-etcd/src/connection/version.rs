//! What a server of this version guarantees.

use tooz_core::{Characteristics, Error, ErrorKind, Result};

/// The oldest version: earlier ones cannot nest transactions as a request for a lock does.
const LEAST: (u64, u64) = (3, 4);

/// The three numbers of a version; what follows them is ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(u64, u64, u64);

impl Version {
    pub(crate) fn parse(version: &str) -> Option<Self> {
        let mut parts = version.split(['.', '-', '+']);
        let mut next = || parts.next()?.parse().ok();
        Some(Self(next()?, next()?, next()?))
    }

    /// Whether the fix that came with these patch releases of 3.4 and 3.5 is in it.
    pub(crate) fn has(self, in_34: u64, in_35: u64) -> bool {
        match self {
            Self(3, 4, patch) => patch >= in_34,
            Self(3, 5, patch) => patch >= in_35,
            newer => newer >= Self(3, 6, 0),
        }
    }
}

/// Whether its series gets no fixes any more (November 2026).
pub(crate) fn is_unmaintained(version: Version) -> bool {
    version < Version(3, 5, 0)
}

/// Lowers `best` to what a server of `version` guarantees. What an unknown version may lack counts as not guaranteed.
///
/// # Errors
/// `Incompatible`: it is too old for this driver.
pub(crate) fn lower(best: Characteristics, version: &str) -> Result<Characteristics> {
    let Some(number) = Version::parse(version) else {
        return Ok(best - Characteristics::STRICT_EXCLUSION - Characteristics::LINEARIZABLE);
    };
    if (number.0, number.1) < LEAST {
        return Err(Error::new(
            ErrorKind::Incompatible,
            format!("the server is etcd {version}; at least 3.4 is needed, upgrade it"),
        ));
    }
    let mut guaranteed = best;
    // A renewal could succeed on a lease that the server had already decided to revoke (etcd 3.4 before 3.4.38, 3.5
    // before 3.5.23): then the server ends a session before the deadline that it confirmed.
    if !number.has(38, 23) {
        guaranteed -= Characteristics::STRICT_EXCLUSION;
    }
    // Linearizable reads could be stale after a pause of a member (etcd-io/etcd#20418; 3.4.20 to 3.4.41, 3.5 before
    // 3.5.28).
    if !number.has(42, 28) {
        guaranteed -= Characteristics::LINEARIZABLE;
    }
    Ok(guaranteed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_each_version_keeps() {
        let best =
            Characteristics::STRICT_EXCLUSION | Characteristics::LINEARIZABLE | Characteristics::FAIR_LOCKS;
        for (version, strict, linearizable) in [
            ("3.4.23", false, false),
            ("3.4.38", true, false),
            ("3.4.42", true, true),
            ("3.5.9", false, false),
            ("3.5.28", true, true),
            ("3.6.0", true, true),
            ("3.6.0-rc.1", true, true),
            ("unknown", false, false),
            ("", false, false),
        ] {
            let guaranteed = lower(best, version).unwrap();
            assert_eq!(guaranteed.contains(Characteristics::STRICT_EXCLUSION), strict, "{version}");
            assert_eq!(guaranteed.contains(Characteristics::LINEARIZABLE), linearizable, "{version}");
            assert!(guaranteed.contains(Characteristics::FAIR_LOCKS), "{version}");
        }
        let error = lower(best, "3.3.10").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Incompatible);
        assert!(error.to_string().contains("3.3.10") && error.to_string().contains("3.4"));
    }
}
