"""The job layer: cluster files, submitting a spec to a cluster, and keeping track of it."""
