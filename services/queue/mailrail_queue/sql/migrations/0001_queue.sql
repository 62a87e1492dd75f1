-- The queue's own schema. Rules cited (ACC-, SHD-, LSE-, FIN-, ADM-) are those of docs/spec/message-life.md.
--
-- What shapes it: small recipient rows apart from bodies; a fresh message is stored with its first lease and is in
-- no index of waiting rows; no statement of the message path scans a backlog; every index names the query it serves.
-- `envelope`, `envelope_recipient`, `last_attempt` and `data` hold messages of mailrail.queue.v1 (Envelope, EnvelopeRecipient, Attempt):
-- they grow by protobuf's rules, and what a query asks for has a column of its own beside them.
-- Object references are written `namespace/name`. Times are by this server's clock.
-- Texts in keys and indexes are COLLATE "C": the order of a locale comes from the operating system, and another release of
-- that, on the same server or on a standby, would no longer find rows where their index has them.

-- Ids of recipients and fencing tokens of leases are handed to processes in blocks of 1000, so that a batch needs no
-- answer from the database to know them: nextval = first id of a block.
CREATE SEQUENCE queue.recipient_block INCREMENT BY 1000 MINVALUE 1000 START WITH 1000;
-- A token holds the number of the history (data_history) above its counter: mailrail.core.ids.
CREATE SEQUENCE queue.token_block INCREMENT BY 1000 MINVALUE 1000 START WITH 1000;

-- --- messages -------------------------------------------------------------------------------------------------------

-- Content can be dropped a stretch of time at once, in place of row by row: message and chunk are partitioned by the message's id, whose
-- order is that of time (UUIDv7). How long a stretch is, is not part of the schema. So far there is one partition for all; others are added
-- beside it without a row being written anew (docs/decisions/0017).

-- Envelope and content, written once. Never updated: an update would copy the content.
CREATE TABLE queue.message (
    id        uuid PRIMARY KEY,  -- chosen by ingress before DATA (ACC-04); also serves every join
    accepted  timestamptz NOT NULL DEFAULT now(),
    barred    boolean NOT NULL DEFAULT false,  -- no message: its outcome was asked for before it came, and it may not come later (ACC-04)
    mail_from text NOT NULL DEFAULT '',  -- empty: null reverse-path
    account   text,  -- whose mail it is; NULL: a stranger's
    size      bigint NOT NULL DEFAULT 0,  -- octets of prefix and body
    chunks    integer NOT NULL DEFAULT 0,  -- 0: the body is inline; else it is this many rows of queue.chunk
    envelope  bytea NOT NULL DEFAULT '',  -- mailrail.queue.v1.Envelope
    prefix    bytea NOT NULL DEFAULT '',  -- what we added above the content (ACC-01)
    body      bytea,
    CONSTRAINT message_has_a_body CHECK (barred OR (body IS NULL) = (chunks > 0))
) PARTITION BY RANGE (id);
-- Mail compresses badly and is read once: pglz would cost more than it saves.
ALTER TABLE queue.message
    ALTER COLUMN envelope SET STORAGE EXTERNAL,
    ALTER COLUMN prefix SET STORAGE EXTERNAL,
    ALTER COLUMN body SET STORAGE EXTERNAL;
CREATE TABLE queue.message_default PARTITION OF queue.message DEFAULT WITH (toast_tuple_target = 8160, autovacuum_vacuum_scale_factor = 0.05);
-- The sweeper forgets bars that nobody can run into any more.
CREATE INDEX message_barred ON queue.message (accepted) WHERE barred;

-- Large bodies, 256 KiB a row (ACC-02).
CREATE TABLE queue.chunk (
    message_id uuid NOT NULL,
    number     integer NOT NULL,  -- from 0
    data       bytea NOT NULL,
    PRIMARY KEY (message_id, number)  -- read in order from an offset; deleted by message
) PARTITION BY RANGE (message_id);
ALTER TABLE queue.chunk ALTER COLUMN data SET STORAGE EXTERNAL;
CREATE TABLE queue.chunk_default PARTITION OF queue.chunk DEFAULT WITH (
    -- What clients begin and give up is written and deleted again, as fast as they send: its room has to be there again within a minute
    -- (mailrail.core.uncommitted counts it as long), so vacuum comes early here, for a hundred rows are 25 MiB, and does not dawdle.
    autovacuum_vacuum_threshold = 100, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0,
    toast.autovacuum_vacuum_threshold = 10000, toast.autovacuum_vacuum_scale_factor = 0.02, toast.autovacuum_vacuum_cost_delay = 0
);

-- Bodies on their way in. The commit takes the row away; the sweeper takes it and the chunks after 1 h (ACC-02).
-- Whoever deletes the row owns the chunks, so a commit and the sweeper never both do.
CREATE TABLE queue.upload (
    message_id uuid PRIMARY KEY,
    started    timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX upload_started ON queue.upload (started);  -- the sweeper's search for orphans

-- --- recipients -----------------------------------------------------------------------------------------------------

-- A live recipient: waiting (token NULL), leased (token set) or on hold (held_since set). A final one is a row of history.
CREATE TABLE queue.recipient (
    id                    bigint PRIMARY KEY,
    message_id            uuid NOT NULL,  -- no foreign key: it would cost a look-up a row, and only the sweeper deletes messages (FIN-02)
    shard                 smallint NOT NULL,  -- CRC-32 of the domain modulo 256 (SHD-01)
    site                  text COLLATE "C" NOT NULL,  -- SHD-03
    due                   timestamptz NOT NULL,  -- of the next attempt; no meaning while leased
    token                 bigint,  -- fencing token of the lease (LSE-01); NULL: not leased
    lease_until           timestamptz,
    held_since            timestamptz,  -- on hold since; NULL: not on hold. The lifetime stands still meanwhile
    hold_reason           text,
    attempts              integer NOT NULL DEFAULT 0,  -- made so far, the running one included (LSE-05)
    interruptions         integer NOT NULL DEFAULT 0,  -- attempts whose lease ran out before a result came (LSE-04)
    version               integer NOT NULL DEFAULT 1,  -- bumped by every administrative change (ADM-01)
    request               smallint NOT NULL DEFAULT 0,  -- of a leased one: 1 fail, 2 drop, as soon as the attempt ends without delivery (ADM-02)
    request_reason        text,
    due_after_attempt     timestamptz,  -- of a leased one: due time of the next attempt, by an administrator's word (ADM-02)
    delayed_dsn_decided   boolean NOT NULL DEFAULT false,  -- whether a delayed DSN goes out is decided once per recipient (DSN-09)
    has_attempts          boolean NOT NULL DEFAULT false,  -- it has rows in queue.attempt, which go into history with it
    tls_requirement       smallint NOT NULL DEFAULT 0,  -- mailrail.queue.v1.TlsRequirement; an administrator may change it
    origin                smallint NOT NULL DEFAULT 0,  -- mailrail.queue.v1.Origin
    sender_authentication smallint NOT NULL DEFAULT 0,  -- mailrail.queue.v1.SenderAuthentication: whom a notification may answer (DSN-26)
    queued                timestamptz NOT NULL DEFAULT now(),
    uncounted_seconds     double precision NOT NULL DEFAULT 0,  -- that do not count for the lifetime: before release, and on hold once that ended
    last_attempt_started  timestamptz,  -- of the newest attempt, finished or not
    address               text NOT NULL,
    gateway               text,  -- what routing asks for, so that it need not read the message
    account               text,  -- NULL: a stranger's mail
    from_domain           text NOT NULL DEFAULT '',  -- empty: null reverse-path
    is_local              boolean NOT NULL DEFAULT false,  -- accepted for a domain of ours
    override_transport    text,  -- set by an administrator, overrides routes
    header_key            bigint,  -- of the header's Message-ID (mailrail.core.ids.header_key); NULL: it has none that can be read
    envelope_recipient    bytea NOT NULL,  -- mailrail.queue.v1.EnvelopeRecipient
    last_attempt          bytea,  -- mailrail.queue.v1.Attempt: the newest finished one
    dialled_hosts         bytea,  -- mailrail.queue.v1.DeliveryResult with only `dialled_hosts` set
    lacking               bytea,  -- mailrail.queue.v1.LackingTransports: those that cannot take its message (SOUT-18c); NULL: none is known
    CONSTRAINT recipient_lease_whole CHECK ((token IS NULL) = (lease_until IS NULL)),
    CONSTRAINT recipient_shard CHECK (shard BETWEEN 0 AND 255),
    CONSTRAINT recipient_request CHECK (request BETWEEN 0 AND 2)
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.2);
-- The owner fetches due recipients of a site, oldest first (SHD-03). Leased and held rows are not in it, so they cost nothing here.
CREATE INDEX recipient_due ON queue.recipient (shard, site, due) WHERE token IS NULL AND held_since IS NULL;
-- The sweep for leases that ran out (LSE-04).
CREATE INDEX recipient_lease ON queue.recipient (lease_until) WHERE token IS NOT NULL;
-- Other recipients of a message: grouping, the content sweeper (FIN-02), GetMessage.
CREATE INDEX recipient_message ON queue.recipient (message_id);
-- The owner's walk, page by page, of fail and drop requests (ADM-02).
CREATE INDEX recipient_requested ON queue.recipient (id) WHERE request <> 0;
-- ListRecipients: waiting and held ones by due time, in pages. Leased ones are found by recipient_lease.
CREATE INDEX recipient_listed ON queue.recipient (due, id) WHERE token IS NULL;

-- Finished attempts of live recipients; the newest is in recipient.last_attempt too. History takes them over (FIN-03).
CREATE TABLE queue.attempt (
    recipient_id bigint NOT NULL,
    id           bigint GENERATED ALWAYS AS IDENTITY,
    token        bigint,  -- of the lease whose result it is: a result that is said twice is recorded once
    data         bytea NOT NULL,  -- mailrail.queue.v1.Attempt
    PRIMARY KEY (recipient_id, id)  -- the timeline of a recipient, in order
);

-- --- sites, shards, processes ---------------------------------------------------------------------------------------

-- When a site of a shard next has waiting recipients due: the owner walks these, not the recipients (SHD-03). The time may be too early
-- (then a look finds nothing and moves it), never too late but for a race that the owner's second look and slow round find.
CREATE TABLE queue.site_due (
    shard    smallint NOT NULL,
    site     text COLLATE "C" NOT NULL,
    next_due timestamptz NOT NULL,
    PRIMARY KEY (shard, site)  -- moved by whoever stores or finishes
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX site_due_next ON queue.site_due (shard, next_due);  -- what is due in my shards?

-- What is known of a site beyond one attempt. No row: nothing ever went wrong there.
CREATE TABLE queue.site (
    name          text COLLATE "C" PRIMARY KEY,
    failures      integer NOT NULL DEFAULT 0,  -- in a row; 0: healthy
    backoff_until timestamptz,
    probe_token   bigint,  -- one probe at a time, by whichever owner took it
    probe_until   timestamptz,
    last_error    bytea,  -- mailrail.queue.v1.Attempt after which it backed off
    changed       timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 70);
CREATE INDEX site_changed ON queue.site (changed);      -- owners learn what the others saw of shared sites

-- Who owns a shard. Every lease and scheduling write compares owner and epoch in its own statement (SHD-01).
CREATE TABLE queue.shard (
    number smallint PRIMARY KEY,
    owner  text,
    epoch  bigint NOT NULL DEFAULT 0,
    since  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT shard_number CHECK (number BETWEEN 0 AND 255)
) WITH (fillfactor = 50);
INSERT INTO queue.shard (number) SELECT generate_series(0, 255);

-- Queue processes alive. `id` is one run of a process, `name` outlives it.
CREATE TABLE queue.process (
    id      text COLLATE "C" PRIMARY KEY,
    name    text NOT NULL,
    address text NOT NULL,  -- of its PeerService; empty: none
    started timestamptz NOT NULL DEFAULT now(),
    seen    timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);

-- --- limits and holds -----------------------------------------------------------------------------------------------

-- What an account sent in an hour; limits are counted over the last 24 of them in the Enqueue transaction (ACC-08).
CREATE TABLE queue.account_usage (
    account    text COLLATE "C" NOT NULL,
    hour       timestamptz NOT NULL,
    messages   integer NOT NULL DEFAULT 0,
    recipients integer NOT NULL DEFAULT 0,
    PRIMARY KEY (account, hour)  -- summed by account, swept by hour
);

-- Mail that matches is put on hold as it comes. AND of the set columns; all NULL: everything.
CREATE TABLE queue.hold_rule (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account     text,
    from_domain text,  -- '' is the null reverse-path
    to_domain   text,
    created     timestamptz NOT NULL DEFAULT now(),
    comment     text NOT NULL DEFAULT ''
);
-- Bumped with every change of hold_rule, in its transaction: a process that stored mail under an older version looks again before it hands it on.
CREATE TABLE queue.hold_version (
    one     boolean PRIMARY KEY DEFAULT true CHECK (one),
    version bigint NOT NULL DEFAULT 0
);
INSERT INTO queue.hold_version DEFAULT VALUES;

-- --- finish ---------------------------------------------------------------------------------------------------------

-- Final recipients, by the day they became so (FIN-03). Refers to nothing; partitions are made ahead and dropped whole.
CREATE TABLE queue.history (
    finished           timestamptz NOT NULL DEFAULT now(),
    id                 bigint NOT NULL,  -- of the recipient
    message_id         uuid NOT NULL,
    state              smallint NOT NULL,  -- mailrail.queue.v1.RecipientState
    outcome            smallint NOT NULL,  -- mailrail.queue.v1.Outcome
    attempts           integer NOT NULL,
    tls_requirement    smallint NOT NULL,
    origin             smallint NOT NULL,
    queued             timestamptz NOT NULL,
    size               bigint NOT NULL,
    address            text NOT NULL,
    mail_from          text NOT NULL,
    account            text,
    site               text NOT NULL,
    header_key         bigint,  -- as of the recipient
    envelope           bytea NOT NULL,
    envelope_recipient bytea NOT NULL,
    last_attempt       bytea,  -- mailrail.queue.v1.Attempt: the one that ended it
    earlier_attempts   bytea[]  -- those before, in order
) PARTITION BY RANGE (finished);
ALTER TABLE queue.history ALTER COLUMN envelope SET STORAGE EXTERNAL;
-- ListHistory, newest first; the content sweeper, oldest first (FIN-02).
CREATE INDEX history_finished ON queue.history (finished, id);
-- GetMessage.
CREATE INDEX history_message ON queue.history (message_id);

-- Partitions from yesterday on, one a UTC day, `ahead` days into the future. Safe from several processes at once. Definer, as the
-- function below: days come and go by the hand of the role that owns the tables, also when a service works under another (DBS-01).
CREATE FUNCTION queue.make_history_partitions(ahead integer) RETURNS integer LANGUAGE plpgsql
SECURITY DEFINER SET search_path = queue, pg_temp AS $$
DECLARE
    day  date;
    name text;
    made integer := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('mailrail.queue.history'));
    FOR day IN SELECT generate_series((now() AT TIME ZONE 'UTC')::date - 1, (now() AT TIME ZONE 'UTC')::date + ahead, '1 day')::date LOOP
        name := 'history_' || to_char(day, 'YYYYMMDD');
        IF to_regclass('queue.' || name) IS NULL THEN
            -- Made apart and attached: attaching takes no lock that writers of other partitions wait for.
            EXECUTE format('CREATE TABLE queue.%I (LIKE queue.history INCLUDING ALL)', name);
            EXECUTE format('ALTER TABLE queue.history ATTACH PARTITION queue.%I FOR VALUES FROM (%L) TO (%L)',
                           name, day::text || ' 00:00:00+00', (day + 1)::text || ' 00:00:00+00');
            made := made + 1;
        END IF;
    END LOOP;
    RETURN made;
END $$;
SELECT queue.make_history_partitions(7);

-- Drop a day that is over. Only for a role that does not own the table: the owner detaches it CONCURRENTLY, which no function can and
-- which writers need not wait for. Here they may, so not for long.
CREATE FUNCTION queue.drop_history_partition(name text) RETURNS void LANGUAGE plpgsql
SECURITY DEFINER SET search_path = queue, pg_temp SET lock_timeout = '2s' AS $$
BEGIN
    IF name !~ '^history_[0-9]{8}$' OR name >= 'history_' || to_char((now() AT TIME ZONE 'UTC')::date, 'YYYYMMDD') THEN
        RAISE EXCEPTION '% is no day of history that is over', name;
    END IF;
    EXECUTE format('DROP TABLE IF EXISTS queue.%I', name);
END $$;

-- DSNs made, so that a recipient gets one of a kind at most (FIN-01).
CREATE TABLE queue.dsn (
    recipient_id     bigint NOT NULL,
    kind             smallint NOT NULL,  -- mailrail_queue.notify.dsn.Kind
    about_message_id uuid NOT NULL,  -- the recipient's message: an id that came again must not silence another's notification
    dsn_message_id   uuid NOT NULL,
    made             timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (recipient_id, kind, about_message_id)
);
CREATE INDEX dsn_made ON queue.dsn (made);  -- the sweeper forgets them with their history

-- What others may want to hear of; written in the transaction that made it so (FIN-01), and only while somebody reads events.
-- Numbers are given out before the commit, so a higher one may be visible while a lower one is still to come. A reader goes by the
-- transaction instead, and only up to the oldest that still runs.
CREATE TABLE queue.event (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    transaction  xid8 NOT NULL DEFAULT pg_current_xact_id(),
    at           timestamptz NOT NULL DEFAULT now(),
    kind         smallint NOT NULL,  -- mailrail.queue.v1.EventKind
    recipient_id bigint,  -- NULL: it is about no recipient
    message_id   uuid,  -- NULL: nor about a message
    data         bytea NOT NULL DEFAULT ''  -- by kind; of an attempt: mailrail.queue.v1.Attempt
);
CREATE INDEX event_read ON queue.event (transaction, id);  -- what a consumer has not seen, in order
-- Who reads events. While nobody has for a week, none is written and the message path pays nothing for them.
CREATE TABLE queue.event_consumer (
    name        text COLLATE "C" PRIMARY KEY,
    transaction xid8 NOT NULL DEFAULT '0',  -- with `position`: of the last event that was acknowledged
    position    bigint NOT NULL DEFAULT 0,
    seen        timestamptz NOT NULL DEFAULT now()
);

-- Changes by administrators that must not be done twice to a recipient: how far each has come. A call that repeats one goes on there.
CREATE TABLE queue.admin_operation (
    id         uuid PRIMARY KEY,  -- chosen by the caller
    request    bytea NOT NULL,  -- SHA-256 of what was asked
    began      timestamptz NOT NULL DEFAULT now(),  -- recipients that were queued later are not meant
    position   bigint NOT NULL DEFAULT 0,  -- id of the last recipient that was looked at
    recipients bigint NOT NULL DEFAULT 0,  -- changed so far
    pending    bigint NOT NULL DEFAULT 0,  -- of those, to take effect when their attempt ends
    finished   boolean NOT NULL DEFAULT false
);

-- Messages that lost a reader other than a recipient (a mailbox): the sweeper looks whether anyone still names them.
CREATE TABLE queue.sweep_candidate (
    message_id uuid PRIMARY KEY,
    due        timestamptz NOT NULL DEFAULT now() + interval '10 minutes'
);
-- How far a sweeper has come; its row is its lock.
CREATE TABLE queue.sweep_progress (
    name     text COLLATE "C" PRIMARY KEY,
    position timestamptz NOT NULL DEFAULT '-infinity'
);
INSERT INTO queue.sweep_progress (name) VALUES ('content');

-- --- the built-in mailbox -------------------------------------------------------------------------------------------

CREATE TABLE queue.mailbox (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account text COLLATE "C" NOT NULL,
    path    text COLLATE "C" NOT NULL,  -- `/` between levels
    UNIQUE (account, path)
);

-- A message in a mailbox. Its content is that of queue.message, shared with its recipients and its copies.
CREATE TABLE queue.mailbox_message (
    id                bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    mailbox_id        bigint NOT NULL REFERENCES queue.mailbox (id),
    recipient_id      bigint,  -- NULL: written straight into the mailbox
    message_id        uuid NOT NULL,
    received          timestamptz NOT NULL DEFAULT now(),
    flags             text[] NOT NULL DEFAULT '{}',
    size              bigint NOT NULL,
    prefix            bytea NOT NULL DEFAULT '',  -- lines added at delivery (Return-Path, Delivered-To), above the message's own prefix
    header_from       text NOT NULL DEFAULT '',
    header_to         text NOT NULL DEFAULT '',
    subject           text NOT NULL DEFAULT '',
    header_message_id text NOT NULL DEFAULT '',
    in_reply_to       text NOT NULL DEFAULT '',
    header_references text[] NOT NULL DEFAULT '{}',
    recipient         text NOT NULL DEFAULT '',  -- envelope
    reverse_path      text NOT NULL DEFAULT '',
    dsn               boolean NOT NULL DEFAULT false,
    note              text NOT NULL DEFAULT '',
    UNIQUE (recipient_id, message_id)  -- one delivery a recipient (FIN-01); with the message, so that an id that came again swallows no mail
);
CREATE INDEX mailbox_message_listed ON queue.mailbox_message (mailbox_id, id);  -- ListMessages, newest first
CREATE INDEX mailbox_message_content ON queue.mailbox_message (message_id);     -- the content sweeper: does a mailbox still name it?

-- --- the history of these data ------------------------------------------------------------------------------------------

-- Which history the data are of (mailrail.kit.history): another number once they went back to what they were before.
CREATE TABLE queue.data_history (
    one         boolean PRIMARY KEY DEFAULT true CHECK (one),
    number      integer NOT NULL CHECK (number BETWEEN 0 AND 65535),  -- drawn, never counted: a counter goes back with the data
    predecessor integer,  -- the history that the process which drew it was in
    system      text NOT NULL DEFAULT '',  -- the server on which it was drawn; empty: not used yet
    timeline    integer NOT NULL DEFAULT 0,
    began       timestamptz NOT NULL DEFAULT now(),
    reason      text NOT NULL DEFAULT ''
);
INSERT INTO queue.data_history (number) VALUES (floor(random() * 65536)::integer);
-- What each process wrote last: it reads it back, and knows whether what it committed is still there.
CREATE TABLE queue.data_witness (
    process      text COLLATE "C" PRIMARY KEY,
    last_written bigint NOT NULL,
    seen         timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);

-- --- ids that were given before ---------------------------------------------------------------------------------------

-- Let ids go on beyond every one that is stored or that the caller knows of (`recipients`, `tokens`). A copy of the database may have
-- sequences that are behind its rows: logical replication brings none. Definer: a service's own role owns no sequence (DBS-01).
-- Rows of history are looked at from the newest on: whatever went back did so after the highest was given.
CREATE FUNCTION queue.raise_ids(recipients bigint, tokens bigint) RETURNS void LANGUAGE plpgsql
SECURITY DEFINER SET search_path = queue, pg_temp AS $$
DECLARE
    ahead CONSTANT bigint := 1000000;  -- what others were given at the same time, and what nobody here can know of
    highest bigint;
    latest bigint;
    name text;
    counter text;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('mailrail.queue.ids', 0));
    SELECT greatest(b.last_value, recipients, (SELECT max(id) FROM recipient), (SELECT max(recipient_id) FROM dsn),
                    (SELECT max(recipient_id) FROM mailbox_message),
                    (SELECT max(id) FROM (SELECT id FROM history ORDER BY finished DESC LIMIT 100000) h))
        INTO highest FROM recipient_block b;
    PERFORM setval('recipient_block', ((highest + ahead) / 1000 + 1) * 1000);
    SELECT greatest(b.last_value, tokens, (SELECT max(token & ((1::bigint << 40) - 1)) FROM recipient WHERE token IS NOT NULL))
        INTO highest FROM token_block b;
    PERFORM setval('token_block', ((highest + ahead) / 1000 + 1) * 1000);
    FOREACH name IN ARRAY ARRAY['attempt', 'event', 'hold_rule', 'mailbox', 'mailbox_message'] LOOP
        counter := pg_get_serial_sequence('queue.' || name, 'id');
        EXECUTE format('SELECT max(id) FROM %I', name) INTO highest;
        EXECUTE format('SELECT last_value FROM %s', counter) INTO latest;
        IF highest >= latest THEN
            PERFORM setval(counter, highest + 1000);
        END IF;
    END LOOP;
END $$;

-- The first of 1000 ids of recipients, none of which is in use.
CREATE FUNCTION queue.next_recipient_block() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    first bigint;
BEGIN
    LOOP
        first := nextval('queue.recipient_block');
        IF NOT EXISTS (SELECT FROM queue.recipient WHERE id BETWEEN first AND first + 999) THEN
            RETURN first;
        END IF;
        PERFORM queue.raise_ids(first, 0);
    END LOOP;
END $$;
