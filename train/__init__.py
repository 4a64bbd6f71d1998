"""Training and evaluation. The path of ``everlearn train recipe.yaml``, file by file:

cli               the command: reads the recipe, runs it, prints the version
recipe            the recipe's keys, defaults and checks
runs/registered   finds the run of a recipe, trains it, registers the result
launch            writes run.json, starts the processes below, follows their progress
runs/prepare      a child process: trains a tokenizer if there is none, prepares the data (``data/``)
__main__          one process of the run
run               one process from run.json to a model: data, model, objective, loop, result
models/           the model: loaded, made, checked, saved
objectives/       what is minimized, by one table
loop              the steps; ``optim`` the update, ``parallel/`` the ranks, ``report`` what is said of a step
runs/checkpoint   what a step leaves, for a run that is started again
evaluate/         perplexity, and how far two models are apart
errors            how a run ends without a model
"""
