"""Which texts are kept: those of whole prompt clusters, chosen by their hash alone."""

import heapq
from collections.abc import Sequence

from palate.preferences import PreferenceGroup


class ClusterSample:
    """The groups of as many prompt clusters with the lowest hashes as `limit` groups allow.

    What is kept depends on the data alone, not on their order. The lowest cluster is kept also
    where it alone is larger, cut to its first `limit` groups.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._members: dict[int, list[tuple[int, PreferenceGroup]]] = {}
        self._highest: list[int] = []
        """Clusters that are kept, negated: a heap whose first is the highest."""
        self._bound = 1 << 64
        self._size = 0

    def add(self, index: int, group: PreferenceGroup, cluster: int) -> None:
        """Keep the group with its number, or let it go."""
        if cluster >= self._bound:
            return
        if cluster not in self._members:
            self._members[cluster] = []
            heapq.heappush(self._highest, -cluster)
        self._members[cluster].append((index, group))
        self._size += 1
        while self._size > self.limit:
            if len(self._members) == 1:
                self._members[cluster].pop()
                self._size -= 1
                return
            self._bound = -heapq.heappop(self._highest)
            self._size -= len(self._members.pop(self._bound))

    def kept(self) -> tuple[Sequence[int], Sequence[PreferenceGroup]]:
        """Numbers and groups, in the order of their numbers."""
        members = sorted(
            (m for part in self._members.values() for m in part), key=lambda member: member[0]
        )
        return [index for index, _ in members], [group for _, group in members]
