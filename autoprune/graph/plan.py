"""From relations to a structure: components become units, units in the same places become groups."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
from torch import nn

from autoprune.errors import BadInput
from autoprune.graph.freezing import without
from autoprune.graph.labels import Components, IntArray, Why
from autoprune.graph.parts import AxisPlan, FrozenGroup, Layer, Rescale, Role, Tensor, Term
from autoprune.graph.relations import Key, Relations
from autoprune.graph.rules.elementwise import NOT_ZERO
from autoprune.graph.structure import Structure
from autoprune.graph.tracer import Traced


@dataclass(frozen=True, eq=False)
class Candidate:
    """Components with the same signature: members are roots; why is None when they can be cut."""

    members: tuple[int, ...]
    why: Why | None
    keys: tuple[Key, ...]
    kind: str


def lock_excluded(traced: Traced, exclude: Sequence[str]) -> None:
    """Lock every tensor of the modules that a glob names. Raises BadInput for a glob that names none."""
    for glob in exclude:
        hit = [name for name in traced.state if any(is_excluded(path, glob) for path in traced.relations.owners[name])]
        if not hit and not any(fnmatchcase(path, glob) for path in traced.relations.modules):
            raise BadInput(f"exclude {glob!r} matches no module path; paths look like {_some(traced)}")
        for name in hit:
            why = Why("exclude", traced.relations.owners[name][0], f"excluded by {glob!r}")
            traced.relations.lock_all(traced.values[name], why)


def is_excluded(path: str, glob: str) -> bool:
    """Whether a glob names a module or one above it."""
    parts = path.split(".")
    return any(fnmatchcase(".".join(parts[:i]), glob) for i in range(1, len(parts) + 1))


def _some(traced: Traced) -> str:
    return ", ".join(repr(path) for path in list(traced.relations.modules)[1:4])


def lock_unread(traced: Traced) -> None:
    """Parameters that the forward pass never reads stay as they are."""
    for name, value in traced.values.items():
        if name not in traced.relations.read:
            owner = traced.relations.owners[name][0]
            traced.relations.lock_all(value, Why("unread", owner, "never read by the forward pass"))


def build(traced: Traced, total_flops: float, round_to: int, exclude: Sequence[str]) -> Structure:
    """Solve the relations into a structure. total_flops: counted on the full model, for one sample."""
    rel = traced.relations
    rescales = tuple(_rescales(rel))
    solved = rel.labels.solve()
    candidates = _candidates(traced, solved)
    open_ = [c for c in candidates if c.why is None and len(c.members) > 1]
    units = _numbered(open_, len(solved.roots))
    axes = tuple(_plans(traced, solved, units))
    counters = tuple(
        plan
        for name, labels in rel.counters.items()
        for plan in _axis_plans((name, 0), Role.OTHER, name.partition(":")[0], labels, solved, units)
    )
    terms = tuple(Term(name, flops) for name, flops in rel.flops.items())
    counted = sum(term.coefficient * float(np.prod(traced.values[term.weight].shape)) for term in terms)
    counted += sum(p.coefficient * float(np.prod([length for _, length in p.axes])) for p in rel.products)
    unread = [name for name in traced.values if name not in rel.read and traced.state[name].dim()]
    digest = hashlib.sha256(traced.digest.encode())
    digest.update(json.dumps([sorted(exclude), round_to]).encode())
    structure = Structure(
        names=_names(open_, rel),
        group_sizes=tuple(len(c.members) for c in open_),
        kinds=tuple(c.kind for c in open_),
        tensors={n: Tensor(tuple(t.shape), isinstance(t, nn.Parameter)) for n, t in traced.state.items()},
        axes=axes,
        counters=counters,
        attributes=tuple(rel.attributes.values()),
        terms=terms,
        products=tuple(rel.products),
        rescales=rescales,
        views=tuple(rel.views),
        parts=tuple(rel.parts),
        resized=(),
        flops_fixed=total_flops - counted,
        layers=tuple(_layers(traced)),
        frozen=(
            *_frozen(candidates, rel),
            *_locked_factors(traced, solved),
            *_opaque(rel),
            *_never_read(unread, traced),
        ),
        unsupported=tuple(rel.unsupported),
        round_to=round_to,
        verified="no",
        fingerprint=digest.hexdigest(),
    )
    return without(structure, {item.name: item for item in _uneven(structure)})


def _rescales(rel: Relations) -> Iterator[Rescale]:
    for item in rel.rescalings.values():
        name = rel.counted(item.labels)
        for tensor in (item.origin.weight, item.origin.bias):
            if tensor is not None and tensor.source is not None:
                yield Rescale(tensor.source, item.origin.rows, name, len(item.labels))


def _uneven(structure: Structure) -> Iterator[FrozenGroup]:
    """Groups that do not meet others as a full grid, so that their counts alone do not tell a length."""
    for key, plans in structure.plans_by_axis.items():
        table = np.stack([plan.units for plan in plans], axis=1)
        owners = np.where(table < 0, -1, np.searchsorted(structure.offsets, table, side="right") - 1)
        for owner in np.unique(owners, axis=0):
            groups = sorted({int(g) for g in owner if g >= 0})
            if len(groups) < 2:
                continue
            cells = table[(owners == owner).all(axis=1)]
            _, counts = np.unique(cells, axis=0, return_counts=True)
            whole = len(counts) == np.prod([structure.group_sizes[g] for g in groups])
            if len(groups) == sum(g >= 0 for g in owner) and whole and (counts == counts[0]).all():
                continue
            module = structure.names[groups[0]]
            for g in groups:
                reason = f"a view mixes these with other units on axis {key[1]} of {key[0]}"
                yield FrozenGroup(structure.names[g], structure.group_sizes[g], "view", module, reason)


def hints_by_group(traced: Traced, structure: Structure) -> dict[str, Why]:
    """What Python code fixes about a group, where a rule saw it."""
    if not traced.relations.hints:
        return {}
    solved = traced.relations.labels.solve()
    group_of_root: dict[int, str] = {}
    for (tensor, axis), plans in structure.plans_by_axis.items():
        if tensor not in traced.values:
            continue
        roots = solved.roots[_labels(traced, (tensor, axis))]
        for plan in plans:
            owners = np.searchsorted(structure.offsets, plan.units, side="right") - 1
            for root, owner, unit in zip(roots.tolist(), owners.tolist(), plan.units.tolist(), strict=True):
                if unit >= 0:
                    group_of_root.setdefault(root, structure.names[owner])
    hints: dict[str, Why] = {}
    # What names numbers in Python code explains more than a function does.
    for labels, why in sorted(traced.relations.hints, key=lambda hint: hint[1].reason == NOT_ZERO):
        for root in np.unique(solved.roots[labels]).tolist():
            if root in group_of_root:
                hints.setdefault(group_of_root[root], why)
    return hints


def _keys(traced: Traced) -> list[Key]:
    """All axes of state tensors: those with a role in the order of the graph, then the others."""
    keys = list(traced.relations.roles)
    known = set(keys)
    return keys + [
        (name, axis)
        for name, value in traced.values.items()
        for axis in range(len(value.shape))
        if (name, axis) not in known
    ]


def _candidates(traced: Traced, solved: Components) -> list[Candidate]:
    """Group components by the multiset of axes they live on and by their lock, ordered by first producer."""
    keys = _keys(traced)
    pairs = [solved.leaves(_labels(traced, key)) for key in keys]
    root = np.concatenate([*(leaf for _, leaf in pairs), np.zeros(0, dtype=np.int64)])
    axis = np.repeat(np.arange(len(keys)), [len(leaf) for _, leaf in pairs])
    place = np.concatenate([*(index for index, _ in pairs), np.zeros(0, dtype=np.int64)])
    order = np.lexsort((place, axis, root))
    root, axis, place = root[order], axis[order], place[order]
    if not len(root):
        return []
    starts = np.flatnonzero(np.diff(root, prepend=-1))
    kinds = _kinds(traced, solved)
    groups: dict[tuple[bytes, int, int, str], list[tuple[int, int]]] = {}
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(root)], strict=True):
        found = int(root[start])
        kind = kinds.get(found, "channel")
        key = (axis[start:end].tobytes(), int(solved.locks[found]), int(solved.grid[found]), kind)
        groups.setdefault(key, []).append((int(place[start]), found))
    result = []
    for (signature, lock, _, kind), members in groups.items():
        numbers = np.frombuffer(signature, dtype=axis.dtype)
        on = tuple(keys[i] for i in dict.fromkeys(numbers.tolist()))
        why = solved.whys[lock] if lock >= 0 else _unproduced(on, traced.relations)
        # Roots of one grid axis are numbered in its order, which is not always that of the first places.
        result.append((int(numbers[0]), Candidate(tuple(r for _, r in sorted(members)), why, on, kind)))
    result.sort(key=lambda item: (item[0], item[1].members[0]))
    return [candidate for _, candidate in result]


def _kinds(traced: Traced, solved: Components) -> dict[int, str]:
    """What the axes of grids are, where attention named them: root -> head or head_dim."""
    kinds: dict[int, str] = {}
    for labels, kind in traced.relations.kinds:
        for root in np.unique(solved.roots[labels]).tolist():
            # Batch and heads may have been merged: then the heads are the one factor that can be cut.
            parts = solved.parts.get(root, ())
            found = parts[0] if len(parts) == 1 else _inmost(root, solved)
            if solved.grid[found]:
                kinds.setdefault(found, kind)
    return kinds


def _inmost(root: int, solved: Components) -> int:
    """What decides on a component that cannot be cut: where batch and heads are one axis, the heads, which come last
    in it."""
    locked = solved.locked_parts.get(root, ()) if solved.locks[root] >= 0 else ()
    return max((root, *locked), key=lambda part: int(solved.grid[part]))


def _labels(traced: Traced, key: Key) -> IntArray:
    labels = traced.values[key[0]].axes[key[1]]
    assert labels is not None
    return labels


def _unproduced(keys: Sequence[Key], rel: Relations) -> Why | None:
    if any(rel.roles.get(key) is Role.OUTPUT for key in keys):
        return None
    return Why("none", _owner(keys[0], rel), "no layer computes these channels")


def _owner(key: Key, rel: Relations) -> str:
    return rel.owners[key[0]][0]


def _producer(candidate: Candidate, rel: Relations) -> Key | None:
    return next((key for key in candidate.keys if rel.roles.get(key) is Role.OUTPUT), None)


def _names(candidates: Sequence[Candidate], rel: Relations) -> tuple[str, ...]:
    seen: Counter[str] = Counter()
    names = []
    for candidate in candidates:
        key = _producer(candidate, rel)
        assert key is not None
        path = (_owner(key, rel) or key[0]) + ("" if candidate.kind == "channel" else f"#{candidate.kind}")
        seen[path] += 1
        names.append(path if seen[path] == 1 else f"{path}#{seen[path]}")
    return tuple(names)


def _numbered(candidates: Sequence[Candidate], count: int) -> IntArray:
    """(N,) unit number of every root, -1 for all others."""
    units = np.full(count, -1, dtype=np.int64)
    members = [root for candidate in candidates for root in candidate.members]
    units[members] = np.arange(len(members))
    return units


def _plans(traced: Traced, solved: Components, units_N: IntArray) -> Iterator[AxisPlan]:
    for key in _keys(traced):
        role = traced.relations.roles.get(key, Role.OTHER)
        yield from _axis_plans(key, role, _owner(key, traced.relations), _labels(traced, key), solved, units_N)


def _axis_plans(
    key: Key, role: Role, module: str, labels: IntArray, solved: Components, units_N: IntArray
) -> Iterator[AxisPlan]:
    """One plan for each unit that an index can depend on; none where nothing can be cut."""
    index, leaf = solved.leaves(labels)
    unit = units_N[leaf]
    index, unit = index[unit >= 0], unit[unit >= 0]
    while len(index):
        first = np.flatnonzero(np.diff(index, prepend=-1))
        units = np.full(len(labels), -1, dtype=np.int64)
        units[index[first]] = unit[first]
        yield AxisPlan(*key, role, module, _fixed(units))
        index, unit = np.delete(index, first), np.delete(unit, first)


def _fixed(units: IntArray) -> IntArray:
    units.setflags(write=False)
    return units


def _frozen(candidates: Sequence[Candidate], rel: Relations) -> list[FrozenGroup]:
    """What a user would expect to be cut: everything that a layer computes."""
    frozen = []
    for candidate in candidates:
        key = _producer(candidate, rel)
        if candidate.why is None or key is None:
            continue
        why = candidate.why
        frozen.append(FrozenGroup(_owner(key, rel), len(candidate.members), why.operator, why.module, why.reason))
    return frozen


def _opaque(rel: Relations) -> Iterator[FrozenGroup]:
    """Weights that no rule follows, and layers whose weight is no parameter."""
    for name, (size, why) in rel.opaque.items():
        yield FrozenGroup(name, size, why.operator, why.module, why.reason)


def _locked_factors(traced: Traced, solved: Components) -> Iterator[FrozenGroup]:
    """Heads, or dimensions of a head, that stay whole although the other factor of the same rows can be cut."""
    kinds = _kinds(traced, solved)
    seen: set[int] = set()
    for key, role in traced.relations.roles.items():
        if role is not Role.OUTPUT:
            continue
        roots = np.unique(solved.roots[_labels(traced, key)]).tolist()
        factors = {f for root in roots if solved.locks[root] < 0 for f in solved.locked_parts.get(root, ())}
        inner = {_inmost(factor, solved) for factor in factors}
        sizes = Counter((kinds[f], int(solved.locks[f])) for f in sorted(inner - seen) if f in kinds)
        seen |= inner
        for (kind, lock), size in sizes.items():
            if size > 1:
                why = solved.whys[lock]
                name = f"{_owner(key, traced.relations)}#{kind}"
                yield FrozenGroup(name, size, why.operator, why.module, why.reason)


def _never_read(unread: Sequence[str], traced: Traced) -> list[FrozenGroup]:
    return [
        FrozenGroup(
            name,
            traced.values[name].shape[0],
            "unread",
            traced.relations.owners[name][0],
            "never read by the forward pass",
        )
        for name in unread
    ]


def _layers(traced: Traced) -> list[Layer]:
    """Layers whose own module alone reads their weight."""
    layers = []
    for name, readings in traced.relations.readings.items():
        owner = traced.relations.owners[name][0]
        module = traced.relations.modules[owner]
        kinds = {(r.operator, r.stride, r.padding, r.dilation, r.groups) for r in readings}
        if len(kinds) != 1 or any(r.module not in traced.relations.owners[name] for r in readings):
            continue
        operator, stride, padding, dilation, groups = kinds.pop()
        shape = traced.values[name].shape
        bias = f"{owner}.bias" if owner else "bias"
        out_axis = 1 if operator.startswith("conv_transpose") else 0
        layers.append(
            Layer(
                name=owner,
                kind="linear" if operator == "linear" else "conv_transpose" if out_axis else "conv",
                weight=name,
                bias=bias if isinstance(getattr(module, "bias", None), nn.Parameter) else None,
                in_features=shape[1 - out_axis] * groups,
                out_features=shape[out_axis],
                kernel=tuple(shape[2:]),
                stride=stride,
                padding=padding,
                dilation=dilation,
                groups=groups,
                calls=tuple(r.call for r in readings),
            )
        )
    return layers
