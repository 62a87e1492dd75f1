-- Reports of others that came to our report addresses, as they were read. The mail itself stays in its mailbox.
--
-- Who sent them is proven, and rate-limited all the same: rows have a bound over all reports (mailrail_dmarc.store.received).

-- A report. One that comes twice is here once.
CREATE TABLE dmarc.received (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    identity     bytea NOT NULL,  -- SHA-256 of kind, submitter, organization, policy domain and report id
    kind         smallint NOT NULL,  -- mailrail_dmarc.store.received.ReceivedKind
    submitter    text COLLATE "C" NOT NULL,  -- the domain that vouches for it
    organization text NOT NULL,
    report_id    text NOT NULL,
    domain       text COLLATE "C" NOT NULL,  -- policy domain; of a TLS report the first
    period_begin timestamptz NOT NULL,
    period_end   timestamptz NOT NULL,
    came         timestamptz NOT NULL DEFAULT now(),
    good         bigint NOT NULL,  -- messages that passed DMARC; sessions with TLS as the policy wants it
    bad          bigint NOT NULL,  -- the others
    rejected     integer NOT NULL,  -- records and policies that could not be read
    rows         integer NOT NULL,  -- that are kept of it
    left_out     integer NOT NULL,  -- rows for which there was no room
    head         jsonb NOT NULL  -- what else it says once
);
-- Each report once.
CREATE UNIQUE INDEX received_identity ON dmarc.received (identity);
-- Pages of the reports on a domain, newest first.
CREATE INDEX received_domain ON dmarc.received (domain, id);
-- The sweeper.
CREATE INDEX received_came ON dmarc.received (came);

-- A record of a DMARC report: messages of one address with equal results.
CREATE TABLE dmarc.received_record (
    report      bigint NOT NULL REFERENCES dmarc.received ON DELETE CASCADE,
    number      integer NOT NULL,
    source      inet NOT NULL,
    messages    bigint NOT NULL,
    disposition text NOT NULL,
    dkim        text NOT NULL,  -- aligned: pass or fail; empty: it is not said
    spf         text NOT NULL,
    header_from text COLLATE "C" NOT NULL,
    details     jsonb NOT NULL,  -- envelope_from, envelope_to, reasons, signatures, SPF results
    PRIMARY KEY (report, number)
);
-- What others saw of an address.
CREATE INDEX received_record_source ON dmarc.received_record (source, report);

-- A policy of a TLS report.
CREATE TABLE dmarc.received_policy (
    report     bigint NOT NULL REFERENCES dmarc.received ON DELETE CASCADE,
    number     integer NOT NULL,
    type       text NOT NULL,
    domain     text COLLATE "C" NOT NULL,
    successful bigint NOT NULL,
    failed     bigint NOT NULL,
    details    jsonb NOT NULL,  -- policy-string, mx-host and failure-details
    PRIMARY KEY (report, number)
);

-- A mail in a mailbox for reports that was looked at. Ids of mailboxes begin anew with another database of the queue, times do not.
CREATE TABLE dmarc.received_mail (
    id       bigint NOT NULL,  -- mailrail.queue.v1.MailboxMessage
    received timestamptz NOT NULL,
    outcome  smallint NOT NULL,  -- mailrail_dmarc.store.received.ReadOutcome
    sender   text COLLATE "C" NOT NULL,  -- domain: proven, or as the mail has it
    zone     text COLLATE "C" NOT NULL,  -- its last two labels
    subject  text NOT NULL,
    reason   text NOT NULL,  -- why it does not count, for people
    report   bigint REFERENCES dmarc.received ON DELETE SET NULL,
    looked   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (id, received)
);
-- How many came of a zone lately.
CREATE INDEX received_mail_zone ON dmarc.received_mail (zone, looked);
-- Pages of what was refused, newest first, and the sweeper.
CREATE INDEX received_mail_looked ON dmarc.received_mail (looked);
-- Mails of a report that is swept.
CREATE INDEX received_mail_report ON dmarc.received_mail (report);
