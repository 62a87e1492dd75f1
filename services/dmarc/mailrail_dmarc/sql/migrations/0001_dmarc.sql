-- The schema of dmarc: what was seen of mail under DMARC, until it was reported, and the reports on it. No mail is here.
--
-- Strangers choose domains and addresses, so each table has a bound, and what a zone may take of it: statements in
-- mailrail_dmarc/store. An hour is a number: Unix seconds / 3600, of UTC. Domains are A-labels in lower case, without a final dot. Texts
-- in keys are COLLATE "C": the order of a locale comes from the operating system.

-- A policy domain. Whoever counts for it, or fixes a period of it, locks its row first.
CREATE TABLE dmarc.domain (
    domain  text COLLATE "C" PRIMARY KEY,
    zone    text COLLATE "C" NOT NULL,  -- its last two labels: below one of its own a stranger makes any number of domains
    covered bigint NOT NULL DEFAULT 0,  -- hours before this one belong to a period that is fixed; what comes later for them counts for this one
    records bigint NOT NULL DEFAULT 0,  -- rows of dmarc.evaluation, about: never fewer than there are
    changed timestamptz NOT NULL DEFAULT now()
);
-- How many rows a zone has.
CREATE INDEX domain_zone ON dmarc.domain (zone) INCLUDE (records);

-- An hour in which a policy domain was seen, with the policy that was seen last in it (DAGG-01).
CREATE TABLE dmarc.domain_hour (
    domain         text COLLATE "C" NOT NULL,
    hour           bigint NOT NULL,
    policy         bytea NOT NULL,  -- mailrail.core.dmarc.report.facts.encode_policy
    interval_hours smallint NOT NULL,  -- of a period, as the record asked then
    seen           timestamptz NOT NULL,
    PRIMARY KEY (domain, hour)
);

-- Messages of an hour with equal facts and an equal weight for whether there is a report.
CREATE TABLE dmarc.evaluation (
    domain       text COLLATE "C" NOT NULL,
    hour         bigint NOT NULL,
    source       inet NOT NULL,
    fingerprint  bytea NOT NULL,  -- SHA-256 of facts
    cause        smallint NOT NULL,  -- mailrail_dmarc.store.evaluations.ReportCause
    our_domain   text COLLATE "C" NOT NULL,  -- of the recipient
    organization text COLLATE "C" NOT NULL,  -- of the author
    facts        bytea NOT NULL,  -- mailrail.core.dmarc.report.facts, without the address
    messages     bigint NOT NULL,
    -- Rows of a report: domain and hours.
    PRIMARY KEY (domain, hour, source, fingerprint, cause)
);

-- Batches of ingress and outbound that are counted: one that comes again is not.
CREATE TABLE dmarc.batch (
    id       uuid PRIMARY KEY,
    received timestamptz NOT NULL DEFAULT now()
);
-- The sweeper.
CREATE INDEX batch_received ON dmarc.batch (received);

-- With whom a domain of ours had mail: whether one that was refused is a cause for a report (DAGG-18).
CREATE TABLE dmarc.contact (
    our_domain text COLLATE "C" NOT NULL,
    domain     text COLLATE "C" NOT NULL,  -- an organizational domain, or one below it
    day        date NOT NULL,  -- the last
    PRIMARY KEY (our_domain, domain)
);
-- The sweeper.
CREATE INDEX contact_day ON dmarc.contact (day);

-- A report: its period is fixed, and so are its rows, until it is done. One of a policy domain and period, whoever makes it.
CREATE TABLE dmarc.report (
    domain     text COLLATE "C" NOT NULL,
    end_hour   bigint NOT NULL,  -- exclusive
    begin_hour bigint NOT NULL,
    submitter  text COLLATE "C" NOT NULL DEFAULT '',  -- our domain, which its id and file name have; empty: no address has it yet
    policy     bytea NOT NULL,  -- seen last in the period
    created    timestamptz NOT NULL DEFAULT now(),
    state      smallint NOT NULL DEFAULT 0,  -- mailrail_dmarc.store.reports.ReportState
    detail     text NOT NULL DEFAULT '',  -- what came of it, or why it waits, for people
    messages   bigint NOT NULL DEFAULT 0,  -- that it tells of
    holder     text NOT NULL DEFAULT '',  -- the process that works on it
    due        timestamptz NOT NULL DEFAULT now(),  -- nobody else takes it before
    tries      integer NOT NULL DEFAULT 0,
    finished   timestamptz,
    PRIMARY KEY (domain, end_hour)
);
-- What is to be done, the longest due first.
CREATE INDEX report_due ON dmarc.report (due) WHERE state = 0;
-- Pages of reports, newest first, and the sweeper.
CREATE INDEX report_created ON dmarc.report (created);

-- The mail with a report for one address. Its id is stored before it is first sent: the queue tells under it what became of it.
CREATE TABLE dmarc.report_mail (
    domain     text COLLATE "C" NOT NULL,
    end_hour   bigint NOT NULL,
    address    text COLLATE "C" NOT NULL,
    message_id uuid NOT NULL,
    notice     boolean NOT NULL DEFAULT false,  -- it tells that the report is too large for the address, and has none
    tried      boolean NOT NULL DEFAULT false,  -- the queue may have it
    state      smallint NOT NULL DEFAULT 0,  -- mailrail_dmarc.store.reports.MailState
    detail     text NOT NULL DEFAULT '',
    finished   timestamptz,
    PRIMARY KEY (domain, end_hour, address),
    FOREIGN KEY (domain, end_hour) REFERENCES dmarc.report ON DELETE CASCADE
);

-- Addresses that get no report until a time.
CREATE TABLE dmarc.suppression (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    address  text COLLATE "C" NOT NULL,  -- the domain in lower case
    inserted timestamptz NOT NULL DEFAULT now(),
    until    timestamptz NOT NULL,
    comment  text NOT NULL DEFAULT ''
);
-- Each address once.
CREATE UNIQUE INDEX suppression_address ON dmarc.suppression (address);
