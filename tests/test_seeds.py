from __future__ import annotations

from autoprune.seeds import derive_seed


def test_seeds_stay_the_same_for_ever() -> None:
    assert derive_seed(0, "order") == derive_seed(0, "order")
    assert derive_seed(3, "pass", 1) == int.from_bytes(bytes.fromhex(_DIGEST), "big") >> 1


def test_seeds_differ_by_seed_and_purpose() -> None:
    seeds = {derive_seed(s, p, n) for s in range(5) for p in ("a", "b") for n in range(5)}
    assert len(seeds) == 50
    assert all(0 <= seed < 2**63 for seed in seeds)


_DIGEST = "fe7edaf7a4537364"  # the first half of sha256 of "3/pass/1" begins so
