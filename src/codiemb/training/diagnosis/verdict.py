"""A diagnosis in plain words: which tasks pull against each other, where, how strongly, and which is the louder."""

from __future__ import annotations

from collections.abc import Sequence

from codiemb.training.diagnosis.conflict import MIXED, Diagnosis, Estimate, PairInLayer

_NOTHING, _CLEARLY, _STRONGLY = 0.05, 0.2, 0.5  # sizes of a corrected cosine
_LOUDER = 2.0  # times as long a gradient


def verdict(diagnosis: Diagnosis) -> list[str]:
    """Sentences: one for each pair of tasks, the worst conflict first, then on norms, then on mixed batches."""
    whole = diagnosis.whole
    ordered = sorted(diagnosis.single, key=lambda pair: _sort_key(diagnosis.pairs[pair][whole]))
    sentences = [_on_pair(diagnosis, pair) for pair in ordered]
    if all(_is_told(diagnosis.pairs[pair][whole].corrected) for pair in ordered) and not any(
        _sign(one.corrected) < 0 for pair in ordered for one in diagnosis.pairs[pair]
    ):
        sentences.insert(0, "No conflict beyond noise.")
    return [*sentences, *_on_norms(diagnosis), *_on_mixed(diagnosis)]


def bounds(estimate: Estimate | None) -> str:
    """A cosine with its interval."""
    return f"{estimate.value:+.2f} [{estimate.low:+.2f}, {estimate.high:+.2f}]" if estimate else "too noisy"


def _sort_key(found: PairInLayer) -> float:
    return found.corrected.value if found.corrected else 1.0


def _on_pair(diagnosis: Diagnosis, pair: tuple[str, str]) -> str:
    found = diagnosis.pairs[pair][diagnosis.whole].corrected
    names = f"{pair[0]} and {pair[1]}"
    if found is None:
        noisy = min(pair, key=lambda name: diagnosis.groups[name][diagnosis.whole].within.value)
        within = diagnosis.groups[noisy][diagnosis.whole].within.value
        seen = bounds(diagnosis.pairs[pair][diagnosis.whole].cosine)
        return (
            f"{names}: too noisy to tell. Two batches of {noisy} agree with a cosine of {within:+.2f} only, one of "
            f"each with {seen}; take more of them (--batches), or larger ones."
        )
    share = f"{abs(found.value):.0%}"
    if _sign(found) < 0:
        size = _size(found.value)
        words = (
            f"{names} pull against each other{size}: cosine {bounds(found)}. A step for one undoes {share} of what "
            "an equally long step for the other gains."
        )
    elif _sign(found) > 0:
        size = " in part" if found.value < _STRONGLY else ""
        words = (
            f"{names} agree{size}: cosine {bounds(found)}. A step for one brings {share} of what an equally long step "
            "for the other gains."
        )
    elif found.sign:
        words = f"{names} hardly touch each other: cosine {bounds(found)}."
    elif _is_told(found):
        words = f"{names} neither help nor hurt each other: cosine {bounds(found)}, which is 0 but for noise."
    else:
        words = f"{names}: too few batches to tell (--batches). The cosine is {bounds(found)}."
    return " ".join([words, *_layers_against(diagnosis, pair)])


def _sign(estimate: Estimate | None) -> int:
    """Of a cosine that noise does not explain and that is large enough to matter; else 0."""
    return 0 if estimate is None or abs(estimate.value) < _NOTHING else estimate.sign


def _is_told(estimate: Estimate | None) -> bool:
    """Whether it is known to be below 0, above, or near 0."""
    return estimate is not None and (estimate.sign != 0 or max(-estimate.low, estimate.high) < _CLEARLY)


def _size(cosine: float) -> str:
    if abs(cosine) >= _STRONGLY:
        return " strongly"
    return " clearly" if abs(cosine) >= _CLEARLY else " slightly"


def _layers_against(diagnosis: Diagnosis, pair: tuple[str, str]) -> list[str]:
    """A sentence on the layers where they pull against each other; none where there is none."""
    layers = diagnosis.layers[: diagnosis.whole]
    found = [one.corrected for one in diagnosis.pairs[pair][: diagnosis.whole]]
    against = {place: one.value for place, one in enumerate(found) if one and _sign(one) < 0}
    if not against:
        return []
    where = "every layer" if len(against) == len(layers) else ", ".join(_ranges(list(against), layers))
    worst = min(against, key=against.__getitem__)
    at_worst = f", most in {layers[worst]}" if len(against) > 1 else ""
    return [f"They pull against each other in {where}{at_worst} ({against[worst]:+.2f})."]


def _ranges(places: Sequence[int], layers: Sequence[str]) -> list[str]:
    """Names of layers, neighbours as `first to last`."""
    runs: list[list[int]] = []
    for place in places:
        if runs and place == runs[-1][-1] + 1:
            runs[-1].append(place)
        else:
            runs.append([place])
    return [layers[run[0]] if len(run) == 1 else f"{layers[run[0]]} to {layers[run[-1]]}" for run in runs]


def _on_norms(diagnosis: Diagnosis) -> list[str]:
    single = list(dict.fromkeys(name for pair in diagnosis.single for name in pair))
    if len(single) < 2:
        return []
    norms = {name: diagnosis.groups[name][diagnosis.whole].norm for name in single}
    signals = {name: diagnosis.groups[name][diagnosis.whole].signal for name in single}
    loud, quiet = max(norms, key=norms.__getitem__), min(norms, key=norms.__getitem__)
    if norms[loud] < _LOUDER * norms[quiet]:
        return []
    clear = max(signals, key=signals.__getitem__)
    means = f"; without its noise, {clear}'s is the longest" if clear != loud else ""
    return [
        f"The gradient of a batch of {loud} is {norms[loud] / norms[quiet]:.1f} times as long as one of {quiet}"
        f"{means}: a sum of both would mostly follow {loud}."
    ]


def _on_mixed(diagnosis: Diagnosis) -> list[str]:
    whole = diagnosis.whole
    sentences = []
    if diagnosis.parts:
        parts = "; ".join(
            f"{' and '.join(name.removesuffix(' in mixed') for name in pair)} "
            f"{bounds(diagnosis.pairs[pair][whole].corrected)}"
            for pair in diagnosis.parts
        )
        sentences.append(f"In mixed batches, under one InfoNCE, the tasks' parts have the cosine {parts}.")
        along = "; ".join(
            f"{pair[1]}'s {bounds(diagnosis.pairs[pair][whole].corrected)}"
            for pair in diagnosis.pairs
            if pair[0] == MIXED
        )
        sentences.append(f"The gradient of a whole mixed batch and each task's own: {along}.")
    return sentences
