-- The outbox of events (FIN-01) is written only while somebody reads it, and read in an order that loses none.

-- Who reads. While nobody has for a week, no event is written and the message path pays nothing for them.
CREATE TABLE queue.event_consumer (
    name        text COLLATE "C" PRIMARY KEY,
    transaction xid8        NOT NULL DEFAULT '0',  -- with `position`: of the last event that was acknowledged
    position    bigint      NOT NULL DEFAULT 0,
    seen        timestamptz NOT NULL DEFAULT now()
);

-- Numbers are given out before the commit, so a higher one may be visible while a lower one is still to come. A reader goes by the
-- transaction instead, and only up to the oldest that still runs.
ALTER TABLE queue.event ADD COLUMN transaction xid8 NOT NULL DEFAULT pg_current_xact_id();
CREATE INDEX event_read ON queue.event (transaction, id);  -- what a consumer has not seen, in order
