"""Quality gates: whether what is stored is as good as it should be.

A gate is a small function that reads tables and views and answers with readings: one a platform,
or one for the whole project. `headrace.gates.checks.GATES` lists them; a stage that wants one of
its own adds a function there. How each stood is kept in table gate_states, a row a change.
"""

from __future__ import annotations

from headrace.gates.look import Gate, Look, Reading, State
from headrace.gates.states import Told, judge

__all__ = ["Gate", "Look", "Reading", "State", "Told", "judge"]
