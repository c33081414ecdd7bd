"""How pytest-xdist spreads tests that are grouped by model. Imported only where pytest-xdist is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xdist.scheduler import LoadGroupScheduling
from xdist.workermanage import WorkerController


class ModelGroupScheduling(LoadGroupScheduling):  # type: ignore[misc]  # xdist has no types
    """Gives groups of tests to workers, whole. As xdist's own, but it is told the groups, so that no node id needs to
    hold them, and a test that killed its worker has failed and is not run again."""

    def __init__(self, config: Any, log: Any, groups: Mapping[str, str]) -> None:
        """*groups* are filled by the time that the workers have collected: node id -> group."""
        super().__init__(config, log)
        self._groups = groups

    def _split_scope(self, nodeid: str) -> str:
        return self._groups.get(nodeid, nodeid)

    def remove_node(self, node: WorkerController) -> str | None:
        """Take back what the worker *node* has not run. Returns the test that it died in; None where there is none."""
        work = self.assigned_work.pop(node)
        left = [(unit, test) for unit in work.values() for test, done in unit.items() if not done]
        if not left:
            return None
        unit, died_in = left[0][0], str(left[0][1])
        unit[died_in] = True  # xdist's own scheduler would give it to the next worker
        self.workqueue.update({scope: unit for scope, unit in work.items() if not all(unit.values())})
        for other in self.assigned_work:
            self._reschedule(other)
        return died_in
