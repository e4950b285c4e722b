"""The sections of a sweep: its winner, its charts, what stopped whom, what sharing saved, all trials."""

from __future__ import annotations

from collections import defaultdict

from tltrain.report.layout import Row, Value, card, facts, join_words, row, table
from tltrain.report.markup import Markup
from tltrain.report.scales import duration_text
from tltrain.report.sweep_charts import cells_card, confirmation_card, curves_card, parallel_card
from tltrain.report.sweep_view import Sweep
from tltrain.report.time_page import sharing_card
from tltrain.report.trials import Trial, is_number, value_text

MAX_ROWS = 1000


def sections(sweep: Sweep) -> list[Markup | None]:
    """Return all sections of a sweep but those of the winner's evaluation."""
    other = "val_top1" if sweep.metric.name == "val_loss" else "val_loss"
    halves = [
        winner_card(sweep),
        cells_card(sweep),
        curves_card(sweep, sweep.metric.name),
        curves_card(sweep, other),
        parallel_card(sweep),
        confirmation_card(sweep),
        sharing_card(sweep.sharing),
        stopped_card(sweep),
    ]
    return [row(*halves), trials_card(sweep)]


def winner_card(sweep: Sweep) -> Markup | None:
    """Return what won, and by how much."""
    winner = sweep.winner
    if winner is None:
        return None
    is_running = any(trial.state in ("running", "pending") for trial in sweep.trials)
    entries = {
        "Trial": winner.id,
        **{sweep.names[key]: value_text(value) for key, value in winner.values.items()},
        f"Best {sweep.metric.label}": sweep.metric.text(winner.score),
        "At epoch": f"{winner.score_epoch} of {winner.epochs} trained" if winner.score_epoch else None,
        "State": winner.state,
        "Ahead of the next": _lead(sweep, winner),
    }
    note = "The best so far; the sweep still runs." if is_running else "Chosen on the validation images alone."
    return card("Best trial" if is_running else "Winner", facts(entries), note=note, id_="winner")


def _lead(sweep: Sweep, winner: Trial) -> str | None:
    others = [trial for trial in sweep.scored if trial.id != winner.id]
    if not others or winner.score is None or others[0].score is None:
        return None
    lead = winner.score - others[0].score
    text = f"{100 * lead:+.1f} points" if sweep.metric.is_share else f"{lead:+.4f}"
    return f"{text} ({others[0].id})"


def stopped_card(sweep: Sweep) -> Markup | None:
    """Return the trials that ended early, by what ended them."""
    by_reason: dict[tuple[str, str], list[Trial]] = defaultdict(list)
    for trial in sweep.trials:
        if trial.state in ("stopped", "failed"):
            by_reason[trial.state, trial.reason or "no reason was recorded"].append(trial)
    if not by_reason:
        return None
    order = sorted(by_reason.items(), key=lambda item: (item[0][0], -len(item[1]), item[0][1]))
    rows = [
        Row(
            [
                state,
                reason,
                Value(str(len(trials)), len(trials)),
                Value(sweep.metric.text(trials[0].score), trials[0].score),
                join_words([t.id for t in trials]),
            ]
        )
        for (state, reason), trials in order[:100]
    ]
    heads = ["state", "why", "trials", "best", "which"]
    count = sum(map(len, by_reason.values()))
    note = f"{count} of {len(sweep.trials)} trials ended early."
    return card("What stopped whom", table(heads, rows, wrapped=(1, 4), is_tall=True), note=note, id_="stopped")


def trials_card(sweep: Sweep) -> Markup | None:
    """Return all trials as a table."""
    if not sweep.trials:
        return None
    shown = sweep.trials[:MAX_ROWS]
    numeric = {key for key in sweep.keys if all(is_number(t.values[key]) for t in sweep.trials if key in t.values)}
    keys = [sweep.names[key] for key in sweep.keys]
    heads = ["trial", sweep.metric.label, *keys, "epochs", "best at", "time", "state", "why"]
    rows = [_trial_row(sweep, trial, numeric) for trial in shown]
    note = "A click on a heading sorts."
    if len(shown) < len(sweep.trials):
        note = f"The best {len(shown):,} of {len(sweep.trials):,}; all of them are in trials.parquet. {note}"
    return card("Trials", table(heads, rows, wrapped=(len(heads) - 1,), is_tall=True), note=note, id_="trials")


def _trial_row(sweep: Sweep, trial: Trial, numeric: set[str]) -> Row:
    values: list[str | Value] = []
    for key in sweep.keys:
        text, value = value_text(trial.values[key]) if key in trial.values else "-", trial.values.get(key)
        values.append(Value(text, value) if key in numeric else text)
    cells = [
        trial.id,
        Value(sweep.metric.text(trial.score), trial.score),
        *values,
        Value(str(trial.epochs), trial.epochs),
        Value("-" if trial.score_epoch is None else str(trial.score_epoch), trial.score_epoch),
        Value("-" if trial.seconds is None else duration_text(trial.seconds), trial.seconds),
        trial.state,
        trial.reason,
    ]
    return Row(cells, trial.id, "best" if trial == sweep.winner else None)
