"""The protocol's test vectors that concern a server, and what was asked of the local Amp, each with the test that holds it.

Vectors 1 to 12 are rules by which a client judges ranges: here they are held from the other side, as sequences of ranges
that the server sends and those that it never does. Vectors 13 to 20 are of a client's own store.
"""

from __future__ import annotations

import ast
import random
from pathlib import Path

import pytest

from amp.devserver import LocalAmp
from tests.support.bare_client import BareClient

pytestmark = pytest.mark.integration

TESTS = Path(__file__).parent.parent
HASHES = 'SELECT block_num, hash FROM eth_rpc.blocks'
ZERO = '0x' + '00' * 32
OF_CLIENTS = range(13, 21)

VECTORS = {
    1: 'integration/test_local_amp_vectors.py::test_vector_1_a_fork_inside_of_a_range_and_the_way_back',
    2: 'integration/test_local_amp.py::test_a_reorg_of_one_block_starts_again_at_the_fork',
    3: 'integration/test_local_amp.py::test_a_reorg_inside_of_a_range_starts_inside_of_it',
    **dict.fromkeys(range(4, 12), 'integration/test_local_amp_vectors.py::test_vectors_4_to_11_ranges_keep_the_rules'),
    12: 'integration/test_local_amp_config.py::test_two_nodes_of_two_networks_at_once',
    21: 'integration/test_local_amp_vectors.py::test_vector_21_cursors_before_and_after_a_reorg',
    22: 'integration/test_local_amp.py::test_a_cursor_that_does_not_parse_is_ignored',
    23: 'integration/test_local_amp.py::test_a_cursor_of_another_network_is_refused',
    24: 'integration/test_local_amp_functions.py::test_vectors_24_and_28_streams_of_what_cannot_be_streamed',
    25: 'integration/test_local_amp.py::test_select_1_has_a_row_and_a_completion_batch',
    26: 'integration/test_local_amp.py::test_a_stream_over_nothing_ends_at_once',
    27: 'integration/test_local_amp.py::test_microbatches_of_at_most_1000_blocks_linked_by_hash',
    28: 'integration/test_local_amp.py::test_header_and_settings',
    29: 'integration/test_local_amp_functions.py::test_vector_29_reserved_aliases',
    30: 'integration/test_local_amp_functions.py::test_vector_30_unknown_columns_are_internal',
    31: 'integration/test_local_amp_functions.py::test_vector_31_the_functions_of_the_protocol',
}

ASKED = {
    'references': 'integration/test_local_amp_http.py::test_each_revision_of_a_dataset_has_its_own_tables',
    'forms of references': 'unit/test_devserver_names.py::test_dataset_references',
    '_block_num over a join': 'integration/test_local_amp_streaming.py::test_a_join_does_not_say_whose_block_num',
    'unique names, one statement, read-only': 'unit/test_devserver_sql.py::test_refusals_have_the_servers_code_and_text',
    'decoding against eth-abi': 'unit/devserver_evm/test_abi.py::test_what_eth_abi_encodes_is_decoded',
    'eth_call': 'integration/test_local_amp_functions.py::test_contracts_are_called_at_a_block',
    'what may stream': 'unit/test_devserver_sql.py::test_what_may_stream',
    'what may not': 'unit/test_devserver_sql.py::test_what_may_not_stream',
    'deltas': 'unit/test_devserver_deltas.py::test_the_microbatches_are_the_batch_result',
    'groups by block': 'integration/test_local_amp_streaming.py::test_groups_by_block',
    'keep-alives': 'integration/test_local_amp_streaming.py::test_a_microbatch_that_takes_long_is_kept_alive',
    'silence': 'integration/test_local_amp_streaming.py::test_nothing_is_said_between_microbatches',
    'schema held back': 'integration/test_local_amp.py::test_do_get_says_nothing_before_the_first_microbatch',
    'early end': 'integration/test_local_amp_streaming.py::test_a_dataset_without_blocks_ends_the_stream_or_holds_it',
    'orphan cursor': 'integration/test_local_amp.py::test_the_cursor_of_an_orphan_goes_back_to_the_fork',
    'unknown cursor': 'integration/test_local_amp.py::test_an_unknown_cursor_starts_at_its_own_number',
    'cursor above': 'integration/test_local_amp.py::test_a_cursor_above_the_chain_waits_for_it',
    'reorg not higher': 'integration/test_local_amp.py::test_a_reorg_that_does_not_grow_is_not_seen',
    'networks do not mix': 'integration/test_local_amp_streaming.py::test_networks_do_not_mix',
    'errors of GetFlightInfo': 'integration/test_local_amp.py::test_get_flight_info_refuses',
    'errors for people': 'unit/test_devserver_friendly.py::test_planning_errors_for_people',
    'configuration': 'integration/test_local_amp_config.py::test_simulated_stored_and_derived_upon_derived',
    'JSON Lines': 'integration/test_local_amp_http.py::test_rows_as_json_lines',
    'JSON Lines, refusals': 'integration/test_local_amp_http.py::test_errors_before_the_first_row',
    'datasets and manifests': 'integration/test_local_amp_http.py::test_versions_and_manifests',
    'schema': 'integration/test_local_amp_http.py::test_schema_of_tables_that_are_not_registered',
    'deploy, jobs, stop, progress': 'integration/test_local_amp_http.py::test_a_derived_dataset_from_registration_to_rows',
    'token': 'integration/test_local_amp_http.py::test_who_needs_a_token_for_flight_needs_it_for_the_rest',
    'store': 'integration/test_rpc_store.py::test_history_is_settled_in_files_and_served_from_them',
    'metadata of files': 'integration/test_rpc_store.py::test_the_files_are_such_as_amp_writes',
    'restart': 'integration/test_rpc_store.py::test_a_server_that_was_killed_goes_on_where_it_stopped',
    'joined files': 'unit/test_devserver_store.py::test_killed_at_any_moment_nothing_is_lost_and_nothing_twice',
    'rate limit': 'integration/test_rpc_store.py::test_a_busy_node_is_asked_again_after_the_pause_that_it_names',
    'flat memory': 'integration/test_parquet_source.py::test_a_million_logs_take_no_more_memory_than_a_hundred_thousand',
    'controls': 'integration/test_local_amp_faults.py::test_cut_inside_of_a_microbatch_once',
    'stall': 'integration/test_local_amp_faults.py::test_stall_until_released',
    'cursor ignored once': 'integration/test_local_amp_faults.py::test_a_cursor_ignored_once',
    'the same rows as the node': 'integration/test_rpc_source.py::test_transfers_and_reorgs_are_seen_as_the_node_says_them',
    'transfers against the ABI': 'integration/test_local_amp_functions.py::test_transfers_are_decoded_as_the_abi_says',
    'node that is down': 'integration/test_rpc_source.py::test_an_outage_is_reported_and_waited_out',
    'node that is slow': 'integration/test_rpc_store.py::test_a_slow_node',
    'node that is pruned': 'integration/test_rpc_store.py::test_a_pruned_node_is_an_error_that_says_so',
    'node of another chain': 'integration/test_rpc_store.py::test_a_node_that_becomes_another_chain_is_not_followed',
    'corrupt Parquet': 'integration/test_rpc_store.py::test_a_damaged_file_is_fetched_again',
    'port in use': 'integration/test_local_amp_config.py::test_a_port_in_use_is_said_and_nothing_is_left_listening',
    'hostile SQL': 'integration/test_local_amp_functions.py::test_hostile_statements_leave_the_server_up',
    'client that never reads': 'integration/test_local_amp_faults.py::test_a_stalled_stream_does_not_hold_the_server',
}


@pytest.mark.parametrize('what', [*VECTORS, *ASKED])
def test_each_has_a_test(what):
    file, _, name = {**VECTORS, **ASKED}[what].partition('::')
    tree = ast.parse((TESTS / file).read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_no_vector_is_left_out():
    assert sorted([*VECTORS, *OF_CLIENTS]) == list(range(1, 32))


def test_vector_1_a_fork_inside_of_a_range_and_the_way_back():
    with LocalAmp.simulate(blocks=200, microbatch_max_blocks=100) as amp, BareClient(amp.url) as client:
        with client.stream(HASHES) as stream:
            first, second = stream.microbatch()[-1], stream.microbatch()[-1]
            assert (first.span, second.span) == ((0, 99), (100, 199))
            assert second.range['prev_hash'] == first.range['hash']
            amp.reorg(50)
            third = stream.microbatch()[-1]
        assert third.span == (150, 200)
        assert third.range['prev_hash'] == amp.block_hash(149) != second.range['hash']
        # The rows of 100-149 are in a range that is gone: they come again from before it.
        with client.stream(HASHES, {'simnet': {'number': 99, 'hash': first.range['hash']}}) as stream:
            again = stream.microbatch()
            assert (again[-1].span, again[-1].range['prev_hash']) == ((100, 199), first.range['hash'])
            assert again[-1].range['hash'] != second.range['hash']
            assert stream.microbatch()[-1].span == (200, 200)


@pytest.mark.parametrize('seed', range(4))
def test_vectors_4_to_11_ranges_keep_the_rules(seed):
    choice = random.Random(seed)
    size = choice.choice([3, 10, 1000])
    backwards = 0
    with (
        LocalAmp.simulate(seed=seed, blocks=20, microbatch_max_blocks=size) as amp,
        BareClient(amp.url) as client,
        client.stream(HASHES) as stream,
    ):
        previous: dict | None = None
        for _ in range(12):
            while previous is None or previous['hash'] != amp.head[1]:
                batches = stream.microbatch()
                assert len({str(received.metadata['ranges']) for received in batches}) == 1
                assert [len(received.metadata['ranges']) for received in batches] == [1] * len(batches)
                now = batches[-1].range
                start = now['numbers']['start']
                assert (now['network'], now['prev_hash'] == ZERO) == ('simnet', start == 0)
                if previous is not None:
                    end = previous['numbers']['end']
                    assert start <= end + 1, 'a gap'
                    assert (now['prev_hash'] == previous['hash']) == (start == end + 1)
                    backwards += start <= end
                previous = now
            if choice.random() < 0.5:
                amp.mine(choice.randint(1, 12))
            else:
                amp.reorg(choice.randint(1, 15))
    assert backwards, 'no reorg was seen'


def test_vector_21_cursors_before_and_after_a_reorg():
    with LocalAmp.simulate(blocks=3, network='anvil') as amp, BareClient(amp.url) as client:
        with client.stream(HASHES, {'anvil': {'number': 1, 'hash': amp.block_hash(1)}}) as stream:
            next_one = stream.microbatch()[-1]
        assert (next_one.span, next_one.range['prev_hash']) == ((2, 2), amp.block_hash(1))
        old = amp.block_hash(2)
        amp.reorg(2, extend=0)
        amp.mine(1)
        with client.stream(HASHES, {'anvil': {'number': 2, 'hash': old}}) as stream:
            batches = stream.microbatch()
        assert batches[-1].span == (1, 3)
        found = [row for received in batches for row in received.batch.to_pylist()]
        assert [(row['block_num'], '0x' + row['hash'].hex()) for row in found] == [
            (number, amp.block_hash(number)) for number in (1, 2, 3)
        ]
