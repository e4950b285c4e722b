"""Experiment trackers, told of a run from its folder: TensorBoard, MLflow, W&B. Neither torch nor Ray."""
