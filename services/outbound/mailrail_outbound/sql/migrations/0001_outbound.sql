-- Outbound's own schema: what it knows of recipient domains, and facts for reports to them. No mail is here, and none is lost with it.
--
-- Strangers choose domains, so each table has a bound, and what a domain may take of it: statements in mailrail_outbound/store.
-- Times are by this server's clock. Domains are A-labels in lower case, without a final dot. Texts in keys and indexes are COLLATE "C":
-- the order of a locale comes from the operating system, and another release of that would no longer find rows where their index has them.

-- The cache of MTA-STS policies (RFC 8461), shared by all processes. A row is of a domain that has published a record; a domain without
-- one has no row.
CREATE TABLE outbound.mta_sts (
    domain    text COLLATE "C" PRIMARY KEY,  -- read, write and claim go by it
    zone      text COLLATE "C" NOT NULL,  -- its last two labels: below one of its own a stranger makes any number of domains
    record_id text COLLATE "C" NOT NULL DEFAULT '',  -- id of the TXT record that the policy was fetched for
    policy    text,  -- as a policy host serves it, what senders ignore left out; NULL: none was fetched yet
    fetched   timestamptz,
    ends      timestamptz,  -- fetched and max_age (STS-17)
    refresh   timestamptz,  -- when it is fetched again without mail (STS-19); NULL: not before mail goes there
    failed    timestamptz,  -- the last fetch that failed (STS-18); NULL: none since `fetched`
    failed_id text COLLATE "C" NOT NULL DEFAULT '',  -- the id that it was for
    trouble   text NOT NULL DEFAULT '',  -- mailrail.core.mtasts.answer.FetchTrouble
    failure   text NOT NULL DEFAULT '',  -- why, for people
    mailed    timestamptz NOT NULL DEFAULT now(),  -- when mail last went there, to half a day (STS-25)
    claimed   timestamptz NOT NULL DEFAULT '-infinity',  -- one process fetches until then, and no other begins
    forget    timestamptz NOT NULL,  -- what is here is of no use any more
    CONSTRAINT mta_sts_policy_is_whole CHECK (num_nonnulls(policy, fetched, ends) IN (0, 3))
);
-- How many domains of a zone are here.
CREATE INDEX mta_sts_zone ON outbound.mta_sts (zone);
-- How many policies of a zone, and of all, are long ones.
CREATE INDEX mta_sts_large ON outbound.mta_sts (zone) WHERE octet_length(policy) > 4096;
-- What is to be fetched again.
CREATE INDEX mta_sts_refresh ON outbound.mta_sts (refresh) WHERE refresh IS NOT NULL;
-- The sweeper.
CREATE INDEX mta_sts_forget ON outbound.mta_sts (forget);

-- What the last session with a recipient domain showed, for people and for the choice of REQUIRETLS; no decision about a delivery
-- reads it (RTLS-29).
CREATE TABLE outbound.learned (
    domain     text COLLATE "C" NOT NULL,
    transport  text COLLATE "C" NOT NULL,  -- `namespace/name`; empty: direct delivery
    starttls   boolean NOT NULL,  -- offered, or TLS from the first octet
    requiretls boolean NOT NULL,  -- offered inside TLS
    seen       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (domain, transport)
);
-- The sweeper: the oldest go.
CREATE INDEX learned_seen ON outbound.learned (seen);

-- Facts for TLS reports (RFC 8460), counted by UTC day and by all that a report tells apart, until their reader has them.
-- An open row counts on. One that was given to the reader counts no more: sessions of later are another row, so that what the reader
-- has is what it acknowledges, by an id that never comes again.
CREATE TABLE outbound.tlsrpt (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    given       boolean NOT NULL DEFAULT false,
    zone        text COLLATE "C" NOT NULL,  -- of the domain whose report tells it, as above
    day         date NOT NULL,
    fingerprint bytea NOT NULL,  -- SHA-256 of facts
    facts       bytea NOT NULL,  -- mailrail.core.tlsrpt.facts, without the day
    sessions    bigint NOT NULL
);
-- Counting, and how much a zone has.
CREATE UNIQUE INDEX tlsrpt_open ON outbound.tlsrpt (zone, day, fingerprint) WHERE NOT given;
