"""State of a flow that has changed: steps renamed, dropped, and the states of `process()` made into those of a later version. Pure.

Done when a partition is taken over, before its first record, and written in one transaction: a process that dies on the way has changed nothing.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice
from typing import Any

from mycelia.errors import StateIncompatible, describe
from mycelia.flow.graph import FlowNode, FlowPlan
from mycelia.flow.state import Changes, StoreReader
from mycelia.flow.state_codec import decode_plain_state, decode_state, encode_state

__all__ = ["migrated"]

SPACE = "~engine"
KEY = b"state"

TRIED = 100
"""Keys of each step whose state is read as a partition is taken over."""

_SPACES = ("", "~timers", "~wall")
"""That a step may have, behind its name."""


def migrated(
    store: StoreReader, plan: FlowPlan, flow: str, dropped: Collection[str] = ()
) -> Changes:
    """What is to be written so that the state is that of this plan, as far as the plan says how; nothing, if it is so already.

    Args:
        flow: its name, for error texts.
        dropped: steps that are gone, and their state with them.

    Raises:
        StateIncompatible: a step of the plan cannot be made from the state that is there, or cannot read it; says what to do.
    """
    (data,) = store.read(SPACE, [KEY])
    if data is None:
        return {}
    saved: dict[str, Any] = decode_state(data)
    changes: Changes = {}
    steps = {plan.names[node]: node for node in plan.nodes if node.signature}
    for name, node in steps.items():
        was = node.was
        known = saved["signatures"]
        if was is not None and was in known and name not in known and was not in steps:
            _move(store, changes, saved, was, name)
    for name in dropped:
        if name in saved["signatures"] and name not in steps:
            _drop(store, changes, saved, name)
    for name, node in steps.items():
        if name in saved["signatures"]:
            _upgrade(store, changes, saved, name, node, flow)
            if saved["signatures"][name] == node.signature:
                _try(store, changes, name, flow)
    now = encode_state(saved)
    if now != data:
        changes[SPACE] = {KEY: now}
    return changes


def _kept(store: StoreReader, changes: Changes, space: str) -> dict[bytes, bytes]:
    """What a space holds, with what has been changed."""
    held: dict[bytes, bytes | None] = {**dict(store.scan(space)), **changes.get(space, {})}
    return {key: value for key, value in held.items() if value is not None}


def _move(store: StoreReader, changes: Changes, saved: dict[str, Any], was: str, name: str) -> None:
    for part in _SPACES:
        held = _kept(store, changes, was + part)
        if held:
            changes.setdefault(was + part, {}).update(dict.fromkeys(held))
            changes.setdefault(name + part, {}).update(held)
    for told in ("signatures", "versions", "watermarks"):
        if was in saved.get(told, {}):
            saved[told][name] = saved[told].pop(was)


def _drop(store: StoreReader, changes: Changes, saved: dict[str, Any], name: str) -> None:
    for part in _SPACES:
        if held := _kept(store, changes, name + part):
            changes.setdefault(name + part, {}).update(dict.fromkeys(held))
    for told in ("signatures", "versions", "watermarks"):
        saved.get(told, {}).pop(name, None)


def _try(store: StoreReader, changes: Changes, name: str, flow: str) -> None:
    """Read some of what a step keeps: a class that has changed is found now, and not as the first key that has one is met."""
    changed = changes.get(name)
    some = store.scan(name, TRIED) if changed is None else islice(changed.items(), TRIED)
    for key, data in some:
        if data is None:
            continue
        try:
            decode_state(data)
        except StateIncompatible as exc:
            raise StateIncompatible(
                f'flow "{flow}": the state of step "{name}", key {decode_plain_state(key)!r:.80}: {exc} Nothing has been changed.'
            ) from exc


def _upgrade(
    store: StoreReader,
    changes: Changes,
    saved: dict[str, Any],
    name: str,
    node: FlowNode,
    flow: str,
) -> None:
    has = saved.get("versions", {}).get(name, 1)
    if has == node.version:
        return
    if has > node.version:
        raise StateIncompatible(
            f'flow "{flow}": the state of step "{name}" is of version {has}, and the step\'s is {node.version}. Run the code that wrote it, or go back '
            "to a savepoint of that time."
        )
    missing = [number for number in range(has, node.version) if number not in node.migrate]
    if missing:
        raise StateIncompatible(
            f'flow "{flow}": the state of step "{name}" is of version {has}, the step\'s is {node.version}, and migrate= has nothing for '
            f'{", ".join(map(str, missing))}. Say how: .named("{name}", version={node.version}, migrate={{{missing[0]}: …}}), or reset the flow.'
        )
    for key, data in _kept(store, changes, name).items():
        state = decode_plain_state(data)
        try:
            for number in range(has, node.version):
                state = node.migrate[number](state)
            changes.setdefault(name, {})[key] = encode_state(state)
        except BaseException as exc:
            raise StateIncompatible(
                f'flow "{flow}": the state of step "{name}", key {decode_plain_state(key)!r:.80}, cannot be made version {node.version} of version '
                f"{has}: {describe(exc)}. Nothing has been changed."
            ) from exc
    saved.setdefault("versions", {})[name] = node.version
