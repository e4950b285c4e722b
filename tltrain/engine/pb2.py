"""Population-based bandits, apart from the other schedulers: scikit-learn, which they need, takes seconds to import."""

from __future__ import annotations

from ray.tune.schedulers.pb2 import PB2

from tltrain.engine.turns import TakesTurns


class Pb2(TakesTurns, PB2):
    """Ray Tune's PB2, whose trials take turns."""
