-- Configuration: immutable revisions, one head, sealed values apart, and who runs what (CFG-01 .. CFG-05).

-- Immutable but for `previous` and `diagnostics`, which a later compilation to the same body replaces.
CREATE TABLE revisions (
    revision    bigint PRIMARY KEY CHECK (revision > 0),
    checksum    text NOT NULL,  -- SHA-256 of body, hex
    body        bytea NOT NULL,  -- canonical JSON (mailrail/core/revision/revision.py)
    previous    bytea NOT NULL,  -- what the next compile() needs (CFG-01)
    diagnostics text NOT NULL,  -- JSON list of the compiler's findings
    summary     text NOT NULL,
    secrets     text[] NOT NULL,  -- paths of sealed values that body refers to, of all roles
    publisher   text NOT NULL,
    epoch       bigint NOT NULL,
    created     timestamptz NOT NULL DEFAULT now()
);

-- One row: which revision the services run, and who may publish (CFG-04).
CREATE TABLE head (
    one           boolean PRIMARY KEY DEFAULT true CHECK (one),
    revision      bigint REFERENCES revisions (revision),
    pinned        boolean NOT NULL DEFAULT false,
    pin_reason    text NOT NULL DEFAULT '',
    epoch         bigint NOT NULL DEFAULT 0,  -- of the current publisher; older ones are refused
    publisher     text NOT NULL DEFAULT '',
    -- Numbers are never used twice, also after the newest revision was pruned.
    last_revision bigint NOT NULL DEFAULT 0,
    CHECK (NOT pinned OR revision IS NOT NULL)
);
INSERT INTO head DEFAULT VALUES;

-- Sealed under their reference, once a role (CFG-02). `path` holds the digest of the content, so rows never change.
CREATE TABLE sealed_values (
    path    text COLLATE "C" NOT NULL,  -- as in all keys: no order that another operating system changes
    role    text COLLATE "C" NOT NULL,
    key_id  text NOT NULL,
    sealed  bytea NOT NULL,
    created timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (role, path)                        -- serves "all values of a role for these paths"
);

-- Heartbeats (CFG-05). Unlogged: every row comes again within 2 s, and none of them is worth a disk write.
CREATE UNLOGGED TABLE consumers (
    process  text COLLATE "C" NOT NULL,
    role     text COLLATE "C" NOT NULL,
    revision bigint NOT NULL,  -- that it runs; 0: none
    rejected bigint NOT NULL,  -- that it could not use; 0: none
    error    text NOT NULL,
    version  text NOT NULL,
    seen     timestamptz NOT NULL,
    PRIMARY KEY (process, role)
);

-- --- the history of these data ------------------------------------------------------------------------------------------

-- Which history the data are of (mailrail.kit.history): another number once they went back to what they were before.
CREATE TABLE data_history (
    one         boolean PRIMARY KEY DEFAULT true CHECK (one),
    number      integer NOT NULL CHECK (number BETWEEN 0 AND 65535),  -- drawn, never counted: a counter goes back with the data
    predecessor integer,  -- the history that the process which drew it was in
    system      text NOT NULL DEFAULT '',  -- the server on which it was drawn; empty: not used yet
    timeline    integer NOT NULL DEFAULT 0,
    began       timestamptz NOT NULL DEFAULT now(),
    reason      text NOT NULL DEFAULT ''
);
INSERT INTO data_history (number) VALUES (floor(random() * 65536)::integer);
-- What each process wrote last: it reads it back, and knows whether what it committed is still there.
CREATE TABLE data_witness (
    process      text COLLATE "C" PRIMARY KEY,
    last_written bigint NOT NULL,
    seen         timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);
