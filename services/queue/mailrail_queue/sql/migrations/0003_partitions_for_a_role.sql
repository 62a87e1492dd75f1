-- Days of history come and go by the hand of whoever owns the tables, also when a service works under a role of its own (DBS-01).

ALTER FUNCTION queue.make_history_partitions(integer) SECURITY DEFINER SET search_path = queue, pg_temp;

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
