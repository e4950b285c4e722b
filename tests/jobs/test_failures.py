"""A failed job's log: the first failing rank and the user's own line come first."""

from __future__ import annotations

from tltrain.jobs.failures import failure_lines

# What a job of two workers printed when the user's network raised in one of them.
LOG = """\
Run         /tmp/runs/bad
an error of the spec, the data or the program: trying again would not help.
Training failed due to worker errors:
[Rank 0 Error Snippet]:
Traceback (most recent call last):
  File "/work/main/tltrain/train/session.py", line 116, in train
    self._train_epoch(epoch, step)
RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:28419
[Rank 1,3 Error Snippet]:
Traceback (most recent call last):
  File "/tmp/ray/session_1/runtime_resources/_ray_pkg_0123abcd/tltrain/engine/worker.py", line 26, in train_worker
    return fine_tune(spec, open_run(config), current_group(), report=_report)
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
... (Output truncated. See individual worker logs for full details) ...
gine.run_backward(  # Calls into the C++ engine to run the backward pass
  File "/work/main/.venv/lib/python3.11/site-packages/torch/utils/hooks.py", line 137, in hook
    out = hook(self.module, res, self.grad_outputs)
  File "/tmp/ray/session_1/runtime_resources/_ray_pkg_0123abcd/mynet.py", line 23, in hook
    raise ValueError("my own bug in rank 1")
ValueError: my own bug in rank 1. Run the same command again to go on from the newest checkpoint.
"""


def test_first_failing_rank_and_the_users_line_come_first() -> None:
    assert failure_lines(LOG) == [
        "Rank 1 failed first: ValueError: my own bug in rank 1",
        "  mynet.py:23 in hook",
        '    raise ValueError("my own bug in rank 1")',
    ]


def test_where_all_ranks_lost_each_other_the_first_is_shown() -> None:
    broken = LOG[: LOG.index("[Rank 1,3")]

    assert failure_lines(broken)[0].startswith("Rank 0 failed first: RuntimeError: [../third_party/gloo")


def test_traceback_of_the_driver_alone_is_shown() -> None:
    log = "Traceback (most recent call last):\n  File \"/job/code.py\", line 3, in build\n    x\nKeyError: 'size'\n"

    assert failure_lines(log) == ["The program failed: KeyError: 'size'", "  /job/code.py:3 in build", "    x"]


def test_our_own_line_is_shown_where_there_is_none_of_the_users() -> None:
    log = '  File "/a/tltrain/run.py", line 3, in main\n    x()\n'
    log += '  File "/v/site-packages/t.py", line 9, in y\n    z\nOSError: no\n'

    assert failure_lines(log) == ["The program failed: OSError: no", "  /a/tltrain/run.py:3 in main", "    x()"]


def test_log_without_a_traceback_has_nothing_to_show() -> None:
    assert failure_lines("") == []
    assert failure_lines("error: spec.yaml:3:1 name: is missing.\n") == []
