-- The journal: what must survive a crash, and nothing else. One writer, synchronous=FULL.
-- SQLite has no checksums of its own: "seal" is a digest of the row's other columns, see store.py.

CREATE TABLE meta (
  key   TEXT PRIMARY KEY,
  value TEXT NOT NULL,
  seal  BLOB NOT NULL
) STRICT;

-- The domains of this host. "migration" names the unsettled migration that holds the domain, if one does.
-- "pending" is the definition that an active domain gets when its process has ended, if it gets another.
CREATE TABLE domain (
  uuid       TEXT PRIMARY KEY,
  name       TEXT NOT NULL UNIQUE,
  definition TEXT NOT NULL,
  state      TEXT NOT NULL CHECK (state IN ('inactive', 'bound', 'active')),
  migration  TEXT,
  pending    TEXT CHECK (pending IS NULL OR state = 'active'),
  seal       BLOB NOT NULL
) STRICT;

CREATE TABLE migration (
  id           TEXT PRIMARY KEY,
  side         TEXT NOT NULL CHECK (side IN ('source', 'target')),
  peer         TEXT NOT NULL,
  peer_journal TEXT NOT NULL,
  uuid         TEXT NOT NULL,
  name         TEXT NOT NULL,
  run_state    TEXT NOT NULL,
  definition   TEXT NOT NULL,
  seal         BLOB NOT NULL
) STRICT;

-- Append only. The decision of a migration is its last record, and SETTLED closes it.
CREATE TABLE record (
  migration    TEXT NOT NULL REFERENCES migration (id),
  sequence     INTEGER NOT NULL,
  kind         TEXT NOT NULL,
  time_unix_ms INTEGER NOT NULL,
  sentence     TEXT NOT NULL,
  seal         BLOB NOT NULL,
  PRIMARY KEY (migration, sequence)
) STRICT, WITHOUT ROWID;

CREATE INDEX migration_by_domain ON migration (uuid);
