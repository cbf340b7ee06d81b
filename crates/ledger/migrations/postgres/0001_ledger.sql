-- The ledger: a projection of the events topic. All of it can be dropped; it is read from the topic again.
--
-- Texts sort by their bytes, as in the other stores. They can't hold U+0000, so it is written as U+0001 "0", and U+0001
-- as U+0001 "1". Times are milliseconds since 1970.

-- The log that everything here is a projection of. A generation ends when all of it is forgotten.
CREATE TABLE ledger_log (
    is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    generation bigint NOT NULL,
    topic text,
    cluster_id text,
    topic_id text,
    seen_at timestamptz NOT NULL
);
INSERT INTO ledger_log (generation, seen_at) VALUES (1, now());

-- How far each partition has been projected. Whoever has locked a row is the partition's projector. `next` is null if
-- only records ahead of the log have been applied. `forgotten_until` is the newest time of a job of the partition that
-- was forgotten although the log may still have it.
CREATE TABLE ledger_positions (
    partition integer PRIMARY KEY,
    next bigint,
    forgotten_until bigint
) WITH (fillfactor = 50);

-- How many jobs there are of each state, owner and tenant, and the size of their events. There are no zeros. `shared` is
-- the digest of these three texts, which together may be too long for an index.
CREATE TABLE ledger_counts (
    partition integer,
    shared bytea,
    state text COLLATE "C" NOT NULL,
    owner text COLLATE "C",
    tenant text COLLATE "C",
    jobs bigint NOT NULL,
    bytes bigint NOT NULL,
    PRIMARY KEY (partition, shared)
) WITH (fillfactor = 50);

CREATE TABLE ledger_jobs (
    id text COLLATE "C" PRIMARY KEY,
    partition integer NOT NULL,
    "offset" bigint NOT NULL,
    state text COLLATE "C" NOT NULL,
    has_ended boolean NOT NULL,
    type text COLLATE "C",
    tool text COLLATE "C",
    tenant text COLLATE "C",
    owner text COLLATE "C",
    -- The stable code of the event's error.
    code text COLLATE "C",
    submitted bigint NOT NULL,
    time bigint NOT NULL,
    is_overtaken boolean NOT NULL,
    -- By which the next record of the job is judged.
    standing text NOT NULL,
    -- The event as lists show it, if that is much smaller.
    brief bytea,
    -- The value of the record, byte for byte.
    event bytea NOT NULL
) WITH (
    fillfactor = 85,
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.02
);
CREATE INDEX ledger_jobs_by_time ON ledger_jobs (submitted, id);
CREATE INDEX ledger_jobs_by_state ON ledger_jobs (state, submitted, id);
CREATE INDEX ledger_jobs_by_tool ON ledger_jobs (tool, submitted, id) WHERE tool IS NOT NULL;
CREATE INDEX ledger_jobs_by_tenant ON ledger_jobs (tenant, submitted, id) WHERE tenant IS NOT NULL;
CREATE INDEX ledger_jobs_by_code ON ledger_jobs (code, submitted, id) WHERE code IS NOT NULL;
CREATE INDEX ledger_jobs_by_end ON ledger_jobs (time, id) WHERE has_ended;
CREATE INDEX ledger_jobs_by_overtaken ON ledger_jobs (id) WHERE is_overtaken;
