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

    /// The bugs that are in it.
    pub(crate) fn bugs(self) -> impl Iterator<Item = &'static Bug> {
        BUGS.iter().filter(move |bug| match self {
            Self(3, 4, patch) => patch < bug.fixed.0,
            Self(3, 5, patch) => patch < bug.fixed.1,
            newer => newer < Self(3, 6, 0),
        })
    }
}

/// A bug that can cost a lock, and since when it is no more.
pub(crate) struct Bug {
    pub(crate) what: &'static str,
    /// First fixed in these patch releases of 3.4 and 3.5.
    pub(crate) fixed: (u64, u64),
    /// What a server with it does not guarantee.
    pub(crate) lowers: Characteristics,
}

const BUGS: &[Bug] = &[
    Bug {
        what: "a renewal may succeed on a lease that the server is about to end, so a session can end before its deadline",
        fixed: (38, 23),
        lowers: Characteristics::STRICT_EXCLUSION,
    },
    Bug {
        what: "a leader whose disk stood still may end a lease that was renewed meanwhile (etcd-io/etcd#12528, #15247)",
        fixed: (31, 13),
        lowers: Characteristics::empty(),
    },
    // In 3.4 from 3.4.20 on.
    Bug {
        what: "a member that stood still may answer a linearizable read from the past (etcd-io/etcd#20418)",
        fixed: (42, 28),
        lowers: Characteristics::LINEARIZABLE,
    },
    Bug {
        what: "watches may lose, repeat or misorder events",
        fixed: (38, 0),
        lowers: Characteristics::empty(),
    },
    Bug {
        what: "members' data may come to differ after a crash (etcd-io/etcd#13766)",
        fixed: (0, 3),
        lowers: Characteristics::empty(),
    },
];

/// Series before this one get no fixes any more (November 2026).
pub(crate) const MAINTAINED: Version = Version(3, 5, 0);

/// Lowers `best` to what a server of `version` guarantees. What an unknown version may lack counts as not guaranteed.
///
/// # Errors
/// `Incompatible`: it is too old for this driver.
pub fn lower(best: Characteristics, version: &str) -> Result<Characteristics> {
    let Some(number) = Version::parse(version) else {
        return Ok(best - Characteristics::STRICT_EXCLUSION - Characteristics::LINEARIZABLE);
    };
    if (number.0, number.1) < LEAST {
        return Err(Error::new(
            ErrorKind::Incompatible,
            format!("the server is etcd {version}; at least 3.4 is needed, upgrade it"),
        ));
    }
    Ok(number.bugs().fold(best, |guaranteed, bug| guaranteed - bug.lowers))
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
