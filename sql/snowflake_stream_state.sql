-- What amp remembers of its streams in a Snowflake schema. The loader makes the table when it is not there; run this
-- file beforehand when the role that loads may not create tables, with USE DATABASE and USE SCHEMA before it.
--
-- Rights that loading needs: SELECT, INSERT, UPDATE on this table; USAGE, READ and WRITE on the stage AMP_STAGE; INSERT,
-- SELECT, UPDATE and DELETE on the tables that are loaded; USAGE on warehouse, database and schema. CREATE TABLE on the
-- schema where amp is to make tables, and for the temporary ones of upserts, of nested columns and of the methods insert
-- and pandas. CREATE VIEW for <table>_current (preserve_reorg_history) and <table>_committed (snowpipe_streaming).
--
-- One row is one stream. Rows and state commit together, so change nothing here by hand while a stream runs. To make a
-- stream begin again, delete its rows from its table and its row from here.

CREATE TABLE IF NOT EXISTS amp_stream_state (
    table_name VARCHAR NOT NULL,
    stream VARCHAR NOT NULL,
    scheme VARCHAR NOT NULL,
    number NUMBER(5,0),
    epoch NUMBER(9,0) NOT NULL,
    owner VARCHAR,
    taken_at VARCHAR,
    query VARCHAR,
    committed_at VARCHAR,
    document VARCHAR,
    PRIMARY KEY (table_name, stream)
);

CREATE STAGE IF NOT EXISTS AMP_STAGE;

-- The microbatches of the undo window, one row a network: what a reorg could still take back.
CREATE OR REPLACE VIEW amp_stream_batches AS
SELECT
    s.table_name,
    s.stream,
    r.value[0]::VARCHAR AS network,
    r.value[1]::NUMBER(20,0) AS start_block,
    r.value[2]::NUMBER(20,0) AS end_block,
    r.value[3]::VARCHAR AS end_hash,
    e.value[0]::NUMBER(19,0) AS first_tx_id,
    e.value[1]::NUMBER(19,0) AS last_tx_id,
    s.committed_at
FROM amp_stream_state s,
    LATERAL FLATTEN(INPUT => PARSE_JSON(s.document):entries) e,
    LATERAL FLATTEN(INPUT => e.value[2]) r
WHERE s.scheme <> 'channel';
