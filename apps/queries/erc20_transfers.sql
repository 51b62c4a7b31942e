-- Transfers of ERC-20 tokens, one row each. The value is text with up to 78 digits, in the token's smallest unit.
-- Contracts that index the third argument (ERC-721) use the same topic; they are left out by topic3 IS NULL.
SELECT
    block_num,
    timestamp,
    tx_hash,
    log_index,
    token_address,
    transfer['from'] AS from_address,
    transfer['to'] AS to_address,
    transfer['value'] AS value
FROM (
    SELECT
        block_num,
        timestamp,
        tx_hash,
        log_index,
        address AS token_address,
        evm_decode_log(
            topic1, topic2, topic3, data,
            'Transfer(address indexed from, address indexed to, uint256 value)'
        ) AS transfer
    FROM eth_rpc.logs
    WHERE topic0 = evm_topic('Transfer(address indexed from, address indexed to, uint256 value)')
      AND topic1 IS NOT NULL
      AND topic2 IS NOT NULL
      AND topic3 IS NULL
) AS decoded
WHERE transfer['from'] IS NOT NULL
