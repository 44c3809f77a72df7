"""Whether a trial is the one that a study says: its identity follows from what its manifest says was hashed.

The hash covers settings, sources, text, versions and device (zslx/runs/identity.py). It cannot say that the records
came from that run: whoever doubts this trains a trial again, which gives the same bytes on the same kind of machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from analysis.study.arm import Arm
from analysis.study.declaration import Entry
from zslx.config.spec import BASELINE, PLACEBO, Spec, one_spelling
from zslx.runs.digest import digest, hashed_settings

GROUPS = ("model", "data", "optim", "train")


def identity_fault(entry: Entry, arm: Arm | None, config: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    """Why the identity of a trial does not follow; empty if it does. `arm`: None of a run that is no arm's."""
    parts = manifest.get("ingredients") or {}
    hashed = parts.get("config")
    if not isinstance(hashed, Mapping) or not all(isinstance(hashed.get(g), Mapping) for g in (*GROUPS, "settings")):
        return "its manifest does not say what was hashed"
    name = digest(parts)
    if not {"steps", "probes"} <= (manifest.get("records") or {}).keys():
        return "its manifest has no checksums of its records, as those of earlier versions"
    if manifest.get("identity") != name:
        return f"its manifest says {manifest.get('identity')}, and its ingredients give {name}"
    if entry.identity not in (name, name + digest(config["instruments"])[:8]):
        return f"study.json says {entry.identity}, and its ingredients give {name}"
    if hashed["train"].get("seed") != entry.seed:
        return f"study.json says seed {entry.seed}, and seed {hashed['train'].get('seed')} was hashed"
    if arm and hashed.get("intervention") != one_spelling(arm.intervention):
        return f"study.json says {arm.intervention}, and {hashed.get('intervention')} was hashed"
    if set(hashed["settings"]) != set(map(str, Spec.parse(hashed.get("intervention")).parts)) - {BASELINE}:
        return f"{hashed.get('intervention')} was hashed, with settings of {', '.join(hashed['settings']) or 'nothing'}"
    for method, key, value, meant in _settings(arm, hashed) if arm else ():
        if not same_setting(value, meant):
            return f"study.json says {method}.{key} {value}, and {meant} was hashed"
    return _config_fault(config, hashed)


def _config_fault(config: Mapping[str, Any], hashed: Mapping[str, Any]) -> str:
    """Where config.json differs from what was hashed, in a setting that is hashed."""
    said = hashed_settings(config)
    if one_spelling(said.get("intervention", BASELINE)) != hashed["intervention"]:
        return f"config.json says {said.get('intervention')}, and {hashed['intervention']} was hashed"
    for group in GROUPS:
        for key in dict.fromkeys([*hashed[group], *said[group]]):
            given, meant = (of[group].get(key, "nothing") for of in (said, hashed))
            resolved = (group, key) == ("data", "vocab_size") and config["data"].get("tokenizer")  # the tokenizer's own
            if given != meant and not resolved:
                return f"config.json says {group}.{key} {given}, and {meant} was hashed"
    return ""


def _settings(arm: Arm, hashed: Mapping[str, Any]) -> Iterator[tuple[str, str, Any, Any]]:
    """(method, key, value of the arm, value that was hashed) of each setting that an arm declares."""
    for method, declared in arm.settings.items():
        meant = hashed["settings"].get(method, hashed["settings"].get(f"{PLACEBO}{method}")) or {}
        yield from ((method, key, value, meant.get(key)) for key, value in declared.items())


def same_setting(declared: Any, hashed: Any) -> bool:
    """Whether a setting as it was given, possibly as a text, is the resolved one."""
    if isinstance(hashed, bool):
        return str(declared).lower() in (("true", "1") if hashed else ("false", "0"))
    try:
        return float(declared) == hashed if isinstance(hashed, (int, float)) else str(declared) == hashed
    except (TypeError, ValueError):
        return False


def sources_of(manifest: Mapping[str, Any]) -> set[tuple[str, str]]:
    """(name, sha256) of each source file of a trial's interventions; of files of one name each."""
    named = (manifest.get("ingredients") or {}).get("sources")
    pairs = named.items() if isinstance(named, Mapping) else ()
    return {(str(name), part) for name, digests in pairs for part in str(digests).split("+")}
