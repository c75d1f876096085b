"""From relations to a structure: components become units, units in the same places become groups."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
from torch import nn

from autoprune.errors import BadInput
from autoprune.graph.labels import Components, IntArray, Why
from autoprune.graph.parts import AxisPlan, FrozenGroup, Layer, Role, Tensor, Term
from autoprune.graph.relations import Key, Relations
from autoprune.graph.structure import Structure
from autoprune.graph.tracer import Traced


@dataclass(frozen=True, eq=False)
class Candidate:
    """Components with the same signature: members are roots; why is None when they can be cut."""

    members: tuple[int, ...]
    why: Why | None
    keys: tuple[Key, ...]


def lock_excluded(traced: Traced, exclude: Sequence[str]) -> None:
    """Lock every tensor of the modules that a glob names. Raises BadInput for a glob that names none."""
    for glob in exclude:
        hit = [name for name in traced.state if any(_within(path, glob) for path in traced.relations.owners[name])]
        if not hit and not any(fnmatchcase(path, glob) for path in traced.relations.modules):
            raise BadInput(f"exclude {glob!r} matches no module path; paths look like {_some(traced)}")
        for name in hit:
            why = Why("exclude", traced.relations.owners[name][0], f"excluded by {glob!r}")
            traced.relations.lock_all(traced.values[name], why)


def _within(path: str, glob: str) -> bool:
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
    solved = rel.labels.solve()
    candidates = _candidates(traced, solved)
    open_ = [c for c in candidates if c.why is None and len(c.members) > 1]
    units = _numbered(open_, len(solved.roots))
    axes = tuple(_plans(traced, units[solved.roots]))
    terms = tuple(Term(name, flops) for name, flops in rel.flops.items())
    counted = sum(term.coefficient * float(np.prod(traced.values[term.weight].shape)) for term in terms)
    unread = [name for name in traced.values if name not in rel.read and traced.state[name].dim()]
    digest = hashlib.sha256(traced.digest.encode())
    digest.update(json.dumps([sorted(exclude), round_to]).encode())
    return Structure(
        names=_names(open_, rel),
        group_sizes=tuple(len(c.members) for c in open_),
        tensors={n: Tensor(tuple(t.shape), isinstance(t, nn.Parameter)) for n, t in traced.state.items()},
        axes=axes,
        counters=tuple(
            AxisPlan(name, 0, Role.OTHER, name.partition(":")[0], _fixed(units[solved.roots[labels]]))
            for name, labels in rel.counters.items()
        ),
        attributes=tuple(rel.attributes.values()),
        terms=terms,
        flops_fixed=total_flops - counted,
        layers=tuple(_layers(traced)),
        frozen=(*_frozen(candidates, rel), *_never_read(unread, traced)),
        unsupported=tuple(rel.unsupported),
        round_to=round_to,
        verified="no",
        fingerprint=digest.hexdigest(),
    )


def hints_by_group(traced: Traced, structure: Structure) -> dict[str, Why]:
    """What Python code fixes about a group, where a rule saw it."""
    if not traced.relations.hints:
        return {}
    solved = traced.relations.labels.solve()
    group_of_root: dict[int, str] = {}
    for plan in structure.axes:
        roots = solved.roots[_labels(traced, (plan.tensor, plan.axis))]
        owners = np.searchsorted(structure.offsets, plan.units, side="right") - 1
        for root, owner, unit in zip(roots.tolist(), owners.tolist(), plan.units.tolist(), strict=True):
            if unit >= 0:
                group_of_root[root] = structure.names[owner]
    hints: dict[str, Why] = {}
    for labels, why in traced.relations.hints:
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
    roots_of = [solved.roots[_labels(traced, key)] for key in keys]
    root = np.concatenate([*roots_of, np.zeros(0, dtype=np.int64)])
    axis = np.repeat(np.arange(len(keys)), [len(r) for r in roots_of])
    place = np.concatenate([*(np.arange(len(r)) for r in roots_of), np.zeros(0, dtype=np.int64)])
    order = np.lexsort((place, axis, root))
    root, axis, place = root[order], axis[order], place[order]
    starts = np.flatnonzero(np.diff(root, prepend=-1))
    groups: dict[tuple[bytes, int], list[tuple[int, int]]] = {}
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(root)], strict=True):
        lock = int(solved.locks[root[start]])
        groups.setdefault((axis[start:end].tobytes(), lock), []).append((int(place[start]), int(root[start])))
    found = []
    for (signature, lock), members in groups.items():
        on = tuple(keys[i] for i in dict.fromkeys(np.frombuffer(signature, dtype=axis.dtype).tolist()))
        why = solved.whys[lock] if lock >= 0 else _unproduced(on, traced.relations)
        found.append(
            (
                np.frombuffer(signature, dtype=axis.dtype)[0],
                Candidate(tuple(r for _, r in sorted(members)), why, on),
            )
        )
    found.sort(key=lambda item: (int(item[0]), item[1].members[0]))
    return [candidate for _, candidate in found]


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
        path = _owner(key, rel)
        seen[path] += 1
        names.append(path if seen[path] == 1 else f"{path}#{seen[path]}")
    return tuple(names)


def _numbered(candidates: Sequence[Candidate], count: int) -> IntArray:
    """(N,) unit number of every root, -1 for all others."""
    units = np.full(count, -1, dtype=np.int64)
    members = [root for candidate in candidates for root in candidate.members]
    units[members] = np.arange(len(members))
    return units


def _plans(traced: Traced, units_N: IntArray) -> list[AxisPlan]:
    plans = []
    for key in _keys(traced):
        units = _fixed(units_N[_labels(traced, key)])
        if (units >= 0).any():
            role = traced.relations.roles.get(key, Role.OTHER)
            plans.append(AxisPlan(*key, role, _owner(key, traced.relations), units))
    return plans


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
