"""What `make test` leaves to `make test-thorough`; `.ci/run` runs both.

Left are the long forms of what a shorter test holds to, and what a change seldom breaks alone:
whole runs of examples and benchmarks, builds, CUDA on emulated threads, clusters of processes and
their faults, presets at full length, and of long products of cases three in five. Under tf_keras
also what asks Keras for nothing but an optimizer's step, and three in five of all cases: Keras 3
runs them.

An entry is the beginning of a test's name: a folder, a file, a function or one of its cases.
"""

# Under both Kerases.
ALWAYS = """
analysis/test_popularity.py::test_it_is_within_a_tenth_of_what_training_does
benchmarks/test_distribution.py::test_distinct_rows_are_sent_once
benchmarks/test_distribution.py::test_sleeping_rows_send_their_ids
benchmarks/test_distribution.py::test_stock_keras_sends_every_lookup
benchmarks/test_distribution_quality.py
benchmarks/test_forecast.py
benchmarks/test_multi_worker.py::test_workers_send_what_the_model_says
benchmarks/test_parameter_server.py::test_it_counts_the_bytes_of_stock_and_ours
benchmarks/test_parameter_server.py::test_two_workers_may_share_a_machine
benchmarks/test_parity.py
benchmarks/test_quality.py::test_the_bench_runs_resumes_and_sums_up
benchmarks/test_training_step.py::test_a_result_has_the_agreed_fields_and_a_peer
benchmarks/test_training_step.py::test_the_loss_is_that_of_the_published_dlrm
data/test_log_dataset.py::test_the_process_ends_while_a_batch_is_read_ahead
distribute/test_checkpoints.py
distribute/test_collection.py::test_parameter_servers_hold_and_train_it
distribute/test_lost_worker.py::test_a_link_may_be_cut_for_seconds_and_for_good_ends_both
distribute/test_lost_worker.py::test_the_other_ends_and_both_go_on_to_the_same_bits[chief]
distribute/test_multi_worker.py
distribute/test_parameter_server.py::test_a_server_without_the_ops_is_named_with_what_to_start
distribute/test_parameter_server.py::test_a_table_of_bfloat16_is_refused_with_what_to_do
distribute/test_parameter_server.py::test_another_number_of_servers_takes_the_weights
distribute/test_parameter_server.py::test_callbacks_watch_what_sleeps
distribute/test_parameter_server.py::test_fit_trains_counts_and_holds[{'max_delay': 0}]
distribute/test_parameter_server.py::test_fit_without_built_optimizer_trains_all_the_same
distribute/test_parameter_server.py::test_gradients_that_were_changed_are_refused
distribute/test_parameter_server.py::test_keras_3_divides_a_large_table
distribute/test_parameter_server.py::test_no_update_is_lost_where_workers_write_the_same_rows[no
distribute/test_parameter_server.py::test_no_update_is_lost_with_4_workers
distribute/test_parameter_server.py::test_one_worker_trains_as_one_machine_does[SGD]
distribute/test_parameter_server.py::test_padding_is_nobodys_lookup
distribute/test_parameter_server.py::test_rows_and_gradients_travel_in_the_dtype_asked_for
distribute/test_parameter_server.py::test_skipped_rows_are_neither_held_nor_sent
distribute/test_parameter_server.py::test_the_last_validation_is_what_is_evaluated_after_fit
distribute/test_parameter_server.py::test_what_is_exported_has_stock_ops_alone
distribute/test_parameter_server.py::test_with_an_age_of_0_every_row_is_pulled
distribute/test_parameter_server.py::test_workers_predict_in_order
distribute/test_parameter_server_example.py
distribute/test_parameter_server_faults.py
distribute/test_parameter_server_network.py
distribute/test_replicas_fallback.py::test_plain_tensorflow_ops_do_the_same[momentum]
distribute/test_replicas_fallback.py::test_plain_tensorflow_ops_do_the_same[sgd]
distribute/test_replicas_in_fit.py::test_what_is_validated_is_what_is_evaluated[aggressive]
distribute/test_replicas_in_fit.py::test_what_is_validated_is_what_is_evaluated[balanced]
distribute/test_replicas_in_fit.py::test_what_is_validated_is_what_is_evaluated[conservative]
distribute/test_replicas_in_fit.py::test_what_is_validated_is_what_is_evaluated[none]
distribute/test_vocabulary_on_servers.py::test_an_id_learns_in_a_row_of_its_own[strings]
distribute/test_vocabulary_on_servers.py::test_fit_goes_on_from_a_checkpoint_and_publishes_what_changed
export/test_imports.py::test_keras_knows_our_classes_in_every_kind_of_file[Keras first]
export/test_imports.py::test_keras_knows_our_classes_in_every_kind_of_file[a name after it]
ops/test_gpu_ops.py
policy/test_distribution.py
policy/test_swinging.py
policy/test_target_share.py::test_the_share_follows_the_target_when_the_skew_changes[skip]
policy/test_threads.py::test_results_do_not_depend_on_the_number_of_threads
reliability/test_failing_files.py::test_every_operation_fails_once[ENOSPC]
reliability/test_hostile_state.py::test_no_number_anywhere_crashes_or_changes_what_it_should_not
reliability/test_kills.py
reliability/test_large_cluster.py
selection/test_replicas.py::test_all_replicas_have_the_same_pilot
selection/test_selective_model.py::test_of_several_outputs_one_decides
selection/test_selective_model.py::test_probabilities_stay_those_of_all_inputs[negatives
selection/test_selective_model.py::test_probabilities_stay_those_of_all_inputs[random
selection/test_selective_model.py::test_the_users_weights_are_kept
test_example_models.py::test_click_models_learn_what_those_of_stock_keras_do
test_examples.py::test_replicas_of_the_mirrored_example_are_alike
test_examples.py::test_the_demo_compares_all_ways_of_training_on_a_synthetic_log
test_examples.py::test_the_demo_says_what_is_wrong_with_its_data
test_examples.py::test_the_demo_shows_a_model_that_trains_on_chosen_inputs
test_memory.py::test_the_memory_of_models_made_one_after_another_does_not_add_up[by_a_function]
test_notebooks.py::test_notebook_runs[deepfm]
test_packaging.py::test_a_fresh_environment_without_compiler_runs_the_readme
test_packaging.py::test_a_wheel_from_the_source_archive_has_native_ops_that_load
test_packaging.py::test_cmake_says_what_it_builds
"""

# Of whose functions' cases `make test` runs two in five.
SOME_CASES = """
distribute/test_replicas.py
distribute/test_replicas_in_loops.py
export/test_tracker.py
policy/test_against_reference.py
policy/test_equals_plain_training.py
policy/test_long_runs.py
policy/test_pool.py::test_evictions_are_those_of_the_oracle
selection/test_selective_model.py::test_with_all_kept_training_is_plain_to_the_bit
selection/test_selector.py
test_collection_training.py
test_custom_models.py
test_memory.py
test_saving.py
test_swapping.py
test_training.py
update_rules/test_conservation.py
"""

# Under tf_keras; Keras 3 runs them in `make test`.
WITH_TF_KERAS = """
analysis/
callbacks/test_slipstream_monitor.py
comparison/test_training.py
distribute/test_collection.py
distribute/test_lost_worker.py
distribute/test_parameter_server.py::test_no_update_is_lost_where_workers_write_the_same_rows
distribute/test_parameter_server.py::test_one_worker_trains_as_one_machine_does
distribute/test_replicas.py
distribute/test_replicas_fallback.py
distribute/test_replicas_in_fit.py::test_the_file_predicts_what_the_model_predicts
distribute/test_replicas_in_fit.py::test_weights_that_were_loaded_stay_on_all_replicas
distribute/test_replicas_in_loops.py
export/test_imports.py::test_all_names_are_there_in_dir_and_for_star_imports
export/test_publishing_while_training.py
export/test_save_version.py::test_the_loader_of_tensorflow_serving_answers_the_same_to_the_bit
policy/test_against_reference.py
policy/test_conservation.py
policy/test_long_runs.py
policy/test_pool.py
policy/test_target_share.py
policy/test_threads.py
reliability/
selection/test_pilot.py
selection/test_probabilities.py
selection/test_replicas.py
selection/test_selective_model.py::test_a_wide_model
selection/test_selective_model.py::test_inputs_of_every_kind_wait
selection/test_selective_model.py::test_probabilities_stay_those_of_all_inputs
selection/test_selective_model.py::test_shrunk_batches
selection/test_selective_model.py::test_the_readers_of_click_logs
selection/test_selector.py
test_distribution.py
test_example_models.py::test_a_script_starts_from_a_shell_and_quietly
test_example_models.py::test_sequences_are_learned
test_example_models.py::test_the_model_that_is_brought_up_to_date_is_the_better_one
test_example_models.py::test_what_was_learned_stays_in_a_larger_vocabulary
test_examples.py
test_memory.py::test_so_does_one_that_was_used
test_memory.py::test_the_memory_of_models_made_one_after_another_does_not_add_up
test_padding.py::test_replicas_send_and_count_none
test_threads.py
"""


def thorough(names, is_keras_3):
    """Returns which of the tests `make test` leaves out, and the entries that name none.

    Args:
        names: Of the tests, from this folder on, in their order.
        is_keras_3: Boolean.
    """
    entries = _entries(ALWAYS if is_keras_3 else ALWAYS + WITH_TF_KERAS)
    left = {name for name in names if name.startswith(entries)}
    with_some = _entries(SOME_CASES) if is_keras_3 else ("",)
    functions = {}  # of each file, of which each has a list of its cases
    for name in names:
        file, _, function = name.partition("::")
        if name.startswith(with_some) and name not in left:
            cases = functions.setdefault(file, {}).setdefault(function.partition("[")[0], [])
            cases.append(name)
    for file in functions.values():
        for number, cases in enumerate(file.values()):
            # Other cases of the next function: those of most have the same names.
            first = number % len(cases)
            cases = cases[first:] + cases[:first]
            left.update(one for i, one in enumerate(cases) if i % 5 not in (0, 3))
    files = {name.partition("::")[0] for name in names}
    known = [entry for entry in entries if entry.partition("::")[0] in files]
    return left, [one for one in known if not any(name.startswith(one) for name in names)]


def _entries(text):
    return tuple(filter(None, text.splitlines()))
