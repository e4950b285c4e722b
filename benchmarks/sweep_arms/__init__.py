"""The arms of the sweep benchmark, written by hand, and how they are run, compared and bounded."""
