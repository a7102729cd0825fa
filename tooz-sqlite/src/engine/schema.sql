-- Version 1. Ids, keys and names are blobs as given (any bytes); a lock's key is (namespace, kind, name), so a
-- named lock and a leadership of the same name never meet, nor do two namespaces.
-- Times are microseconds since 1970 on the wall clock, for people to read: nothing is decided by them.

CREATE TABLE tooz (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    -- Another epoch means that the data was lost or replaced.
    epoch BLOB NOT NULL CHECK (length(epoch) = 16)
) STRICT;

-- INVARIANT: no token at or above the durable ceiling was ever given out.
CREATE TABLE fence (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    next INTEGER NOT NULL CHECK (next >= 1),
    ceiling INTEGER NOT NULL CHECK (ceiling >= next),
    boot_id TEXT NOT NULL
) STRICT;

-- AUTOINCREMENT: a number is never used again, so what refers to an ended session fails for ever.
CREATE TABLE sessions (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id BLOB NOT NULL UNIQUE CHECK (length(id) = 16),
    namespace TEXT NOT NULL,
    member BLOB NOT NULL,
    instance BLOB NOT NULL CHECK (length(instance) = 16),
    inode INTEGER NOT NULL,
    pid INTEGER NOT NULL,
    started INTEGER,
    pid_namespace INTEGER,
    boot_id TEXT NOT NULL,
    opened_at INTEGER NOT NULL,
    -- What wakes its process; without one it looks by itself.
    bell BLOB CHECK (length(bell) = 16)
) STRICT;

-- A member id belongs to one live session per namespace; the first join claims it.
CREATE TABLE claims (
    namespace TEXT NOT NULL,
    member BLOB NOT NULL,
    session INTEGER NOT NULL REFERENCES sessions (seq),
    PRIMARY KEY (namespace, member)
) STRICT, WITHOUT ROWID;
CREATE INDEX claims_of_session ON claims (session);

CREATE TABLE groups (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    namespace TEXT NOT NULL,
    name BLOB NOT NULL,
    UNIQUE (namespace, name)
) STRICT;

CREATE TABLE members (
    group_id INTEGER NOT NULL REFERENCES groups (id),
    member BLOB NOT NULL,
    session INTEGER NOT NULL REFERENCES sessions (seq),
    capabilities BLOB NOT NULL,
    incarnation BLOB NOT NULL CHECK (length(incarnation) = 16),
    joined_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (group_id, member)
) STRICT, WITHOUT ROWID;
CREATE INDEX members_of_session ON members (session);

-- mode: 0 exclusive, -1 shared, n > 0 one of n permits.
-- previous: how the holder before ended (0 clean, 1 expired, 2 broken).
-- No index on session: it would cost every acquire and release a page; ending a session scans what is held.
CREATE TABLE holders (
    namespace TEXT NOT NULL,
    kind INTEGER NOT NULL CHECK (kind IN (0, 1)),
    name BLOB NOT NULL,
    attempt BLOB NOT NULL CHECK (length(attempt) = 16),
    session INTEGER NOT NULL REFERENCES sessions (seq),
    mode INTEGER NOT NULL CHECK (mode BETWEEN -1 AND 4294967295),
    token INTEGER NOT NULL CHECK (token >= 1),
    previous INTEGER NOT NULL CHECK (previous BETWEEN 0 AND 2),
    since INTEGER NOT NULL,
    PRIMARY KEY (namespace, kind, name, attempt)
) STRICT, WITHOUT ROWID;

-- The queue's order is the row id: a new row's is larger than that of every row that stands.
CREATE TABLE waiters (
    place INTEGER PRIMARY KEY,
    namespace TEXT NOT NULL,
    kind INTEGER NOT NULL CHECK (kind IN (0, 1)),
    name BLOB NOT NULL,
    attempt BLOB NOT NULL CHECK (length(attempt) = 16) UNIQUE,
    session INTEGER NOT NULL REFERENCES sessions (seq),
    mode INTEGER NOT NULL CHECK (mode BETWEEN -1 AND 4294967295)
) STRICT;
CREATE INDEX queues ON waiters (namespace, kind, name);

-- How a lock's last holder ended, if it ended uncleanly: 1 expired, 2 broken. The next clean release deletes it.
CREATE TABLE marks (
    namespace TEXT NOT NULL,
    kind INTEGER NOT NULL,
    name BLOB NOT NULL,
    how INTEGER NOT NULL CHECK (how IN (1, 2)),
    PRIMARY KEY (namespace, kind, name)
) STRICT, WITHOUT ROWID;

-- Who broke a grant and why, for its holder to learn.
CREATE TABLE breaks (
    attempt BLOB PRIMARY KEY CHECK (length(attempt) = 16),
    token INTEGER NOT NULL,
    by BLOB NOT NULL,
    why TEXT NOT NULL,
    at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX breaks_by_age ON breaks (at);

-- What other processes must hear of, in order and without holes; only the latest are kept.
CREATE TABLE events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    topic INTEGER NOT NULL,
    session INTEGER,
    namespace TEXT,
    name BLOB,
    member BLOB,
    capabilities BLOB,
    incarnation BLOB,
    joined_at INTEGER,
    updated_at INTEGER,
    attempt BLOB
) STRICT;
