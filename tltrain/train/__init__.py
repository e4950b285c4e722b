"""The training loop: lanes, cohort, optimisers, checkpoints, metrics, evaluation. Never imports ray."""
