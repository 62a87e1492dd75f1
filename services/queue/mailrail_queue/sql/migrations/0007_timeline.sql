-- What happened to recipients beside their attempts, such as the changes of administrators (ADM-05). The sweeper puts it into history
-- once they are final: the statement that ends all mail pays nothing for what is rare.
CREATE TABLE queue.timeline (
    recipient_id bigint NOT NULL,
    id           bigint GENERATED ALWAYS AS IDENTITY,
    message_id   uuid NOT NULL,  -- the recipient's: an id that came again is not the same recipient (HIS-03)
    data         bytea NOT NULL,  -- mailrail.queue.v1.TimelineEntry
    PRIMARY KEY (recipient_id, id)  -- of a recipient, in order; the sweeper's walk
);
ALTER TABLE queue.history ADD COLUMN timeline bytea[];  -- mailrail.queue.v1.TimelineEntry, in order; NULL: nothing happened

-- As before, with the ids of the new table.
CREATE OR REPLACE FUNCTION queue.raise_ids(recipients bigint, tokens bigint) RETURNS void LANGUAGE plpgsql
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
    FOREACH name IN ARRAY ARRAY['attempt', 'timeline', 'event', 'hold_rule', 'mailbox', 'mailbox_message'] LOOP
        counter := pg_get_serial_sequence('queue.' || name, 'id');
        EXECUTE format('SELECT max(id) FROM %I', name) INTO highest;
        EXECUTE format('SELECT last_value FROM %s', counter) INTO latest;
        IF highest >= latest THEN
            PERFORM setval(counter, highest + 1000);
        END IF;
    END LOOP;
END $$;
