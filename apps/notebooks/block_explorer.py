"""A block explorer: the newest blocks, and one of them with its transactions and logs.

    pip install 'amp-python[serve]' marimo altair
    marimo run apps/notebooks/block_explorer.py

AMP_URL names the server; without it the notebook makes up a chain of its own.
"""

import marimo

app = marimo.App(width='full', app_title='Blocks')


@app.cell
def _():
    import os

    import altair as alt
    import marimo as mo
    import pyarrow as pa

    import amp

    return alt, amp, mo, os, pa


@app.cell
def _(amp, mo, os):
    made_up = None
    if not os.environ.get('AMP_URL'):
        from amp.devserver import LocalAmp

        made_up = LocalAmp.simulate(seed=3, blocks=400, logs_per_block=(0, 9)).__enter__()
    client = amp.Client(os.environ.get('AMP_URL') or made_up.url)
    refresh = mo.ui.refresh(options=['5s', '30s'], label='look again')
    mo.hstack([mo.md(f'# Blocks\n\nFrom `{client.url}`'), refresh], align='center')
    return client, made_up, refresh


@app.cell
def _(pa):
    def readable(table):
        """Bytes as 0x..., so that hashes and addresses can be read and copied."""
        columns = {}
        for name in table.column_names:
            column = table[name]
            if pa.types.is_binary(column.type) or pa.types.is_fixed_size_binary(column.type):
                column = pa.array([None if value is None else '0x' + value.hex() for value in column.to_pylist()])
            columns[name] = column
        return pa.table(columns)

    return (readable,)


@app.cell
def _(client, mo, refresh):
    refresh.value  # asks again whenever it ticks
    newest = client.sql(
        'SELECT block_num, timestamp, hash, gas_used FROM eth_rpc.blocks ORDER BY block_num DESC LIMIT 50'
    )
    blocks = newest.to_arrow()
    mo.stop(blocks.num_rows == 0, mo.md('The server has no blocks yet.'))
    return (blocks,)


@app.cell
def _(alt, blocks, mo, readable):
    rows = readable(blocks.select(['block_num', 'gas_used']))
    chart = (
        alt.Chart(rows)
        .mark_bar()
        .encode(x=alt.X('block_num:O', title='block'), y=alt.Y('gas_used:Q', title='gas used'))
        .properties(width=680, height=140)
    )
    number = mo.ui.number(
        start=0, stop=blocks['block_num'][0].as_py(), value=blocks['block_num'][0].as_py(), label='block'
    )
    mo.vstack([chart, number])
    return (number,)


@app.cell
def _(client, mo, number, readable):
    where = f'WHERE block_num = {int(number.value)}'
    block = readable(client.sql(f'SELECT * FROM eth_rpc.blocks {where}').to_arrow())
    transactions = readable(
        client.sql(
            f'SELECT tx_index, tx_hash, "from", "to", value, gas_used FROM eth_rpc.transactions {where}'
        ).to_arrow()
    )
    logs = readable(client.sql(f'SELECT log_index, address, topic0, data FROM eth_rpc.logs {where}').to_arrow())
    print(f'block {number.value}: {transactions.num_rows} transactions, {logs.num_rows} logs')
    facts = {name: str(block[name][0]) for name in ('hash', 'parent_hash', 'timestamp')} if block.num_rows else {}
    mo.vstack(
        [
            mo.md('\n'.join(f'* {name}: `{value}`' for name, value in facts.items()) or 'There is no such block.'),
            mo.ui.tabs(
                {
                    f'Transactions ({transactions.num_rows})': mo.ui.table(transactions),
                    f'Logs ({logs.num_rows})': mo.ui.table(logs),
                }
            ),
        ]
    )
    return


if __name__ == '__main__':
    app.run()
