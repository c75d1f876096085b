"""Find the groups that cannot be cut, with few tries.

A try costs several forward passes, and what fails in one block mostly fails in all of its repetitions. So blame goes
to the module that raised and to its like first, and members of a family are told apart only where they differ.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from autoprune.graph.labels import Why

LIMIT = 80
"""Tries for one model; what is unproven then is frozen."""


@dataclass
class Search:
    """families: group -> the family it belongs to; under: module path -> groups in it and in its like; problem:
    what goes wrong when these groups are cut; kinds: group -> what members of a family have to have in common for one
    to speak for another, where that is more than the family."""

    families: Mapping[str, str]
    under: Callable[[str], set[str]]
    problem: Callable[[Sequence[str]], Why | None]
    kinds: Mapping[str, Hashable] = field(default_factory=dict)
    limit: int = LIMIT
    found: dict[str, Why] = field(default_factory=dict)

    def culprits(self) -> dict[str, Why]:
        """Groups that cannot be cut; all others together can."""
        left = list(self.families)
        suspects: list[tuple[list[str], Why]] = []
        while left and (problem := self._try(left)) is not None:
            blamed = [name for name in left if name in self.under(problem.module)] if problem.module else []
            if not blamed:
                blamed = self._failing(left)
            if self.limit <= 0:
                blamed = left
                problem = Why("verification", problem.module, f"not proven within {LIMIT} tries: {problem.reason}")
            suspects.append((blamed, problem))
            left = [name for name in left if name not in blamed]
        for blamed, problem in suspects:
            for family in self._by_family(blamed):
                left = self._admit(left, family, problem)
        return self.found

    def _try(self, names: Sequence[str]) -> Why | None:
        self.limit -= 1
        return self.problem([name for name in self.families if name in set(names)])

    def _by_family(self, names: Sequence[str]) -> list[list[str]]:
        found: dict[str, list[str]] = {}
        for name in names:
            found.setdefault(self.families[name], []).append(name)
        return list(found.values())

    def _failing(self, left: list[str]) -> list[str]:
        """Members of the families that fail by themselves, by bisection over families; all if none does."""
        families = self._by_family(left)
        names: list[str] = []
        stack = [families]
        while stack and self.limit > 0:
            part = stack.pop()
            members = [name for family in part for name in family]
            if len(part) < len(families) and self._try(members) is None:
                continue
            if len(part) == 1:
                names.extend(members)
            else:
                middle = len(part) // 2
                stack.extend((part[middle:], part[:middle]))
        return names or left

    def _admit(self, left: list[str], family: list[str], problem: Why) -> list[str]:
        """Add what can be cut together with the proven groups, blame the rest."""
        if self.limit <= 0:
            return self._blame(left, family, problem)
        found = self._try([*left, *family])
        if found is None:
            return [*left, *family]
        if len(family) == 1:
            return self._blame(left, family, found)
        first, *others = family
        if (alone := self._try([*left, first])) is None:
            return self._halves([*left, first], others, found)
        left = self._blame(left, [first], alone)
        # When the first fails mostly all do: a few of the others tell, before each one is tried. The last comes first:
        # if it fails, so do all others with it.
        probes = list(dict.fromkeys((others[-1], others[len(others) // 2], others[0])))
        last = self._fails(left, probes[0])
        if not last and self._try([*left, *others]) is None:
            return [*left, *others]
        failed = [name for i, name in enumerate(probes) if (last if i == 0 else self._fails(left, name))]
        passed = [name for name in probes if name not in failed]
        rest = [name for name in others if name not in probes]
        left = self._blame(left, failed, alone)
        if not passed:
            known = {self.kinds.get(name) for name in (first, *failed)}
            like = [name for name in rest if self.kinds.get(name) in known]
            left = self._blame(left, like, alone)
            rest = [name for name in rest if name not in like]
        return self._halves(self._halves(left, passed, found), rest, found)

    def _fails(self, left: list[str], name: str) -> bool:
        return self.limit <= 0 or self._try([*left, name]) is not None

    def _halves(self, left: list[str], names: list[str], problem: Why) -> list[str]:
        if not names:
            return left
        if self.limit <= 0:
            return self._blame(left, names, problem)
        found = self._try([*left, *names])
        if found is None:
            return [*left, *names]
        if len(names) == 1:
            return self._blame(left, names, found)
        middle = len(names) // 2
        return self._halves(self._halves(left, names[:middle], found), names[middle:], found)

    def _blame(self, left: list[str], names: list[str], problem: Why) -> list[str]:
        self.found |= dict.fromkeys(names, problem)
        return left
