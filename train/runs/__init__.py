"""A run's folder, from the first command to the registered model.

registered         finds the run of a recipe, trains it, registers the result
identity           what makes two runs the same: recipe, data, base
claim              one process at a time in a folder
legacy_run_folder  folders that earlier versions began
prepare            a child process: tokenizer and data
checkpoint         saves and loads what a step leaves
step_log           steps.jsonl and TensorBoard
full_disk          errors of a full disk, with what to do
live_view          progress at a terminal
"""
