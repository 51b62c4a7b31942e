"""ERC-20 transfers with the names of their tokens, and a chart.

    pip install 'amp-python[duckdb,serve]' marimo altair
    marimo run apps/notebooks/erc20_transfers.py

AMP_URL names the server; without it the notebook makes up a chain of its own. AMP_LABELS names a CSV of tokens with the
columns address and symbol (scripts/token_labels.py makes one); without it tokens are named by letters.
"""

import marimo

app = marimo.App(width='medium', app_title='ERC-20 transfers')


@app.cell
def _():
    import os
    import tempfile
    from pathlib import Path

    import altair as alt
    import duckdb
    import marimo as mo

    import amp

    return Path, alt, amp, duckdb, mo, os, tempfile


@app.cell
def _(amp, mo, os):
    made_up = None
    if not os.environ.get('AMP_URL'):
        from amp.devserver import LocalAmp

        made_up = LocalAmp.simulate(seed=7, blocks=500, logs_per_block=(0, 12)).__enter__()
    client = amp.Client(os.environ.get('AMP_URL') or made_up.url)
    head = client.sql('SELECT max(block_num) AS head FROM eth_rpc.blocks').to_arrow()['head'][0].as_py()
    mo.stop(head is None, mo.md('The server has no blocks yet.'))
    mo.md(f'# ERC-20 transfers\n\nFrom `{client.url}`, whose newest block is **{head:,}**.')
    return client, head, made_up


@app.cell
def _(head, mo):
    blocks = mo.ui.slider(1, head + 1, value=min(200, head + 1), label='newest blocks', show_value=True, debounce=True)
    blocks
    return (blocks,)


@app.cell
def _(Path, client, os, tempfile):
    folder = Path(tempfile.mkdtemp(prefix='amp-notebook-'))
    labels = os.environ.get('AMP_LABELS')
    if not labels:
        contracts = client.sql('SELECT DISTINCT address FROM eth_rpc.logs LIMIT 26').to_arrow()['address'].to_pylist()
        lines = [f'0x{contract.hex()},TOKEN-{chr(65 + n)}' for n, contract in enumerate(sorted(contracts))]
        labels = folder / 'tokens.csv'
        labels.write_text('\n'.join(['address,symbol', *lines]) + '\n')
    client.add_label('tokens', labels)
    return (folder,)


@app.cell
def _(Path, amp, blocks, client, duckdb, folder, head):
    query = (Path(__file__).parents[1] / 'queries' / 'erc20_transfers.sql').read_text()
    recent = f'SELECT * FROM ({query}\n) AS transfers WHERE block_num > {head - blocks.value}'
    database = folder / 'transfers.db'
    result = client.sql(recent).load(
        f'duckdb:///{database}',
        'transfers',
        mode='overwrite',
        label_config=amp.LabelJoinConfig('tokens', 'address', 'token_address', 'left'),
    )
    with duckdb.connect(str(database), read_only=True) as connection:
        activity = connection.sql("""
            SELECT coalesce(symbol, 'other') AS token, block_num::BIGINT // 10 * 10 AS block, count(*) AS transfers
            FROM transfers GROUP BY ALL ORDER BY ALL
        """).to_arrow_table()
        tokens = connection.sql("""
            SELECT coalesce(symbol, 'other') AS token, count(*) AS transfers,
                   count(DISTINCT from_address) AS senders, count(DISTINCT to_address) AS receivers
            FROM transfers GROUP BY ALL ORDER BY transfers DESC
        """).to_arrow_table()
    return activity, result, tokens


@app.cell
def _(activity, alt, mo, result, tokens):
    chart = (
        alt.Chart(activity)
        .mark_bar()
        .encode(
            x=alt.X('block:O', title='block'),
            y=alt.Y('transfers:Q', title='transfers'),
            color=alt.Color('token:N', title='token'),
            tooltip=['block', 'token', 'transfers'],
        )
        .properties(width=680, height=280)
    )
    print(f'{result.rows_loaded} transfers of {tokens.num_rows} tokens')
    mo.vstack(
        [mo.md(f'**{result.rows_loaded:,}** transfers of **{tokens.num_rows}** tokens'), chart, mo.ui.table(tokens)]
    )
    return (chart,)


if __name__ == '__main__':
    app.run()
