-- mailrail: no-transaction
-- ListSites: those that failed and have not worked since, by name.
CREATE INDEX CONCURRENTLY site_failing ON queue.site (name) WHERE failures > 0;
