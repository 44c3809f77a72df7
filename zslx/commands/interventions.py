"""`zslx interventions`: list, show, write, check and time interventions."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from zslx.config.run_config import once
from zslx.config.spec import Part, Spec, one_spelling

# One template each in zslx/intervention/templates; named here so that --help needs no torch.
FAMILIES = (
    "adaptive",
    "curriculum",
    "data_mixing",
    "gradient_surgery",
    "optimization",
    "token_conflict",
    "token_weighting",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="every intervention that can be asked for")
    listing.add_argument(
        "--json", action="store_true", help="a list of objects with name, family, source, settings, cost, status"
    )
    show = actions.add_parser("show", help="the card of one: what it does, settings, cost, source")
    show.add_argument("name", help="a name, placebo:NAME, or several joined by +")
    show.add_argument("--json", action="store_true", help="print JSON: an object, or a list for several")
    new = actions.add_parser("new", help="write a plugin that runs at once, with its test")
    new.add_argument("name", help="lower-case letters, digits and _")
    new.add_argument("--folder", type=Path, help="where to (default: the first folder of ZSLX_PLUGINS, else plugins)")
    new.add_argument(
        "--family",
        choices=FAMILIES,
        default="token_weighting",
        help="what it acts on (default: %(default)s)",
    )
    check = actions.add_parser("check", help="run the checks that every intervention must pass, and train it briefly")
    check.add_argument("name", help="a name, or placebo:NAME")
    check.add_argument("--set", default="", metavar="KEY=VALUE ...", help="settings, such as pcgrad.groups=domain")
    bench = actions.add_parser("bench", help="time a step relative to the plain one, and show where the time goes")
    bench.add_argument("name", help="a name, placebo:NAME, or several joined by +")
    bench.add_argument("--size", default="4M", help="model size (zslx presets lists them; default 4M)")
    bench.add_argument("--rounds", type=int, default=20, help="steps of each, taken in turns (default 20)")
    bench.add_argument("--set", default="", metavar="KEY=VALUE ...", help="settings, such as data.seq_len=256")
    bench.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    actions = {"list": run_list, "show": run_show, "new": run_new, "check": run_check, "bench": run_bench}
    if args.action in ("show", "check", "bench"):
        args.name = one_spelling(args.name)
    return actions[args.action](args)


def run_list(args: argparse.Namespace) -> int:
    from zslx.intervention.discovery import discover
    from zslx.intervention.registry import describe

    cards = [describe(name, sources) for name, sources in discover().items()]
    if args.json:
        print(json.dumps(cards, indent=1))
        return 0
    width = max(len(c["name"]) for c in cards)
    family = None
    for card in sorted(cards, key=lambda c: (c["family"], c["name"])):
        if card["family"] != family:
            family = card["family"]
            print(f"\n{family}")
        note = "" if card["status"].startswith("available") else f"  [{card['status']}]"
        print(f"  {card['name']:{width}}  {card['summary']}{note}")
    print("\nzslx interventions show NAME explains one; make sweep INTERVENTION=NAME tries it.")
    return 0


# By what a class declares as `placebo`: how its placebo departs from it.
PLACEBOS = {
    "group_weights": "its weights are permuted over the groups, and the step keeps the length of the true one",
    "elementwise": "what it does to each coordinate is permuted within each tensor",
    "tokens": "its weights are permuted over the tokens of the batch",
    "samples": "as many sequences as it would keep are drawn at random",
    "windows": "the windows of the text that it chooses are exchanged for others, each always for the same one",
    "actions": "its controller repeats, in a random order, what that of another run of it did (reference=RUN_FOLDER)",
    "token_sums": "what it learns of the tokens' gradients belongs to other coordinates of the same tensor",
}


def run_show(args: argparse.Namespace) -> int:
    cards = [card_of(part) for part in Spec.parse(args.name).parts]
    if args.json:
        print(json.dumps(cards if len(cards) > 1 else cards[0], indent=1))
        return 0
    print("\n\n".join(map(card_text, cards)))
    return 0


def card_of(part: Part) -> dict[str, Any]:
    """Metadata of one part of a spec; ValueError for an unknown name and for a placebo that does not exist."""
    from zslx.intervention.discovery import discover
    from zslx.intervention.registry import describe, load_class, load_intervention, resolve

    name, sources = part.name, discover()
    if name not in sources:
        resolve(name)
    card = describe(name, sources[name])
    if part.placebo:
        load_intervention(str(part))
        how = PLACEBOS[load_class(name).placebo or ""]
        summary = f"The placebo of {name}: all that {name} does, but {how}."
        description = f"{summary}\n\nWhat {name} does: {card['description']}"
        card |= {"name": str(part), "placebo": None, "summary": summary, "description": description}
    return card


def card_text(card: dict[str, Any]) -> str:
    from zslx.intervention.search_range import search_range

    name, method = card["name"], card["name"].rpartition(":")[2]
    if name != method:
        placebo = f"this is the placebo of {method}"
    else:
        placebo = f"placebo:{name}" if card["placebo"] else "none; compare with an equally tuned baseline"
    lines = [
        f"{name} ({card['family']})   status: {card['status']}\n",
        f"{card['description']}\n",
        f"source   {card['source'] or '-'}",
        f"cost     {card['cost'] or '-'}   (1.00 is the plain step)",
        f"placebo  {placebo}",
        "settings" if card["settings"] else "settings none",
    ]
    lines += [f"  {method}.{s['name']}={s['default']}   {s['help']}{allowed(s)}" for s in card["settings"]]
    if found := {s["name"]: r for s in card["settings"] if (r := search_range(s))}:
        lines.append("searched by SEARCH=n, with the learning rate, unless SET gives them")
        lines += [f"  {method}.{name}   {r}" for name, r in found.items()]
    return "\n".join(lines)


def allowed(setting: dict[str, Any]) -> str:
    if setting.get("choices"):
        return f"  [{', '.join(map(str, setting['choices']))}]"
    if "low" in setting or "high" in setting:
        return f"  [{setting.get('low', '')} .. {setting.get('high', '')}]"
    return ""


def run_new(args: argparse.Namespace) -> int:
    from zslx.intervention import scaffold
    from zslx.places import plugin_folders

    plugin, test = scaffold.write(args.name, args.folder, args.family)
    found = any(plugin.resolve().is_relative_to(folder) for folder in plugin_folders())
    shown = [path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path for path in (plugin, test)]
    print(f"wrote {shown[0]}   the method, commented: change it\n      {shown[1]}   its test: pytest {shown[1]}\n")
    if not found:
        folders = os.pathsep.join(map(str, [*plugin_folders(), plugin.parent]))
        print(f'It will be found after: export ZSLX_PLUGINS="{folders}"\n')
    print(f"make sweep INTERVENTION={args.name} PRESET=smoke   tries it at once")
    print(f"zslx interventions check {args.name}                 holds it to what every intervention owes")
    return 0


def run_check(args: argparse.Namespace) -> int:
    """A line a check; exit code 1 if one fails."""
    from zslx.intervention.registry import load_intervention, resolve
    from zslx.testing import Subject, examine

    if len(names := resolve(args.name)) > 1:
        raise ValueError(f"{args.name!r} names several interventions: check each alone ({', then '.join(names)})")
    settings = settings_of(args.name, args.set)
    subjects = [args.name]
    if load_intervention(args.name, **settings).placebo:  # a control that fails would stop the sweep
        subjects.append(str(Part(args.name, True)))
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        for name in subjects:
            print(f"{name}:", flush=True)
            for check, result, why in examine(Subject(name, Path(folder) / name.replace(":", "-"), **settings)):
                seconds, start = time.perf_counter() - start, time.perf_counter()
                print(f"{result:4}  {check.__name__:18} {seconds:5.1f} s  {why}".rstrip(), flush=True)
                failed += result == "fail"
        if not failed:
            failed += not smoke(args.name, settings, Path(folder))
    print(f"\n{args.name}: " + ("passes" if not failed else f"fails {failed} check{'s' * (failed > 1)}"))
    return 1 if failed else 0


def settings_of(name: str, text: str) -> dict[str, str]:
    """`NAME.key=value ...` as {key: value}."""
    found = []
    for item in text.split():
        key, equals, value = item.partition("=")
        head, _, setting = key.partition(".")
        if not equals or not setting or head not in Spec.parse(name).names:
            raise ValueError(
                f"--set {item!r}: allowed are settings of it, such as {Spec.parse(name).names[0]}.KEY=VALUE"
            )
        found.append((setting, value))
    return dict(once(found))


def smoke(name: str, settings: dict[str, str], folder: Path) -> bool:
    """Two short trials, baseline and arm; whether both finished."""
    from zslx.config.presets import preset
    from zslx.config.run_config import override
    from zslx.intervention.registry import reference_of
    from zslx.progress import Progress
    from zslx.runs.records import read_run
    from zslx.training.train import train

    chosen = preset("smoke")
    size, plain = chosen.sizes[0], chosen.for_size(chosen.sizes[0])
    head = name.rpartition(":")[2]
    arm = override(plain, [("intervention", name), *((f"{head}.{k}", v) for k, v in settings.items())])
    if needed := reference_of(arm):
        train(needed, folder / "smoke-reference")
        arm = override(arm, [("reference", str(folder / "smoke-reference"))])
    bar, ends = Progress("smoke study"), []
    for i, (label, config) in enumerate((("baseline", plain), (name, arm))):
        out = folder / f"smoke-{'arm' if i else 'baseline'}"

        def progress(step: int, steps: int, loss: float, i: int = i, label: str = label) -> None:
            bar.at((i + step / steps) / 2, label, f" step {step} of {steps}, loss {loss:.3f}")

        status = train(config, out, progress=progress)["status"]
        if status != "finished":
            bar.done(f"{label}: {status}")
            print(f"fail  smoke study: {label} {status}")
            return False
        run = read_run(out)
        ends.append((run.probes[-1]["heldout_loss"], run.manifest["totals"]["median_step_seconds"]))
    bar.done("done")
    (base_loss, base_time), (loss, seconds) = ends
    print(
        f"pass  smoke study: {size}, {plain.train.steps} steps, one seed: held-out loss {loss:.4f}, baseline "
        f"{base_loss:.4f}; {seconds / base_time:.2f} times its step\n"
        "      (it runs; whether it helps is for make sweep to say)"
    )
    return True


def run_bench(args: argparse.Namespace) -> int:
    import dataclasses

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # before torch: its profiler writes lines of its own to stderr
    from zslx.intervention.registry import resolve
    from zslx.probing.step_cost import PARTS, measure

    if args.rounds < 2:
        raise ValueError(f"--rounds {args.rounds}: must be at least 2")
    resolve(args.name)
    pairs = [tuple(item.split("=", 1)) for item in args.set.split()]
    if bad := [pair for pair in pairs if len(pair) != 2]:
        raise ValueError(f"--set {bad[0][0]!r} is not of the form key=value")
    cost = measure(args.name, args.size, rounds=args.rounds, settings=pairs)
    if args.json:
        print(json.dumps(dataclasses.asdict(cost) | {"ratio": cost.ratio}, indent=1))
        return 0
    low, high = cost.quartiles
    print(f"{args.name} at {args.size}: {cost.ratio:.2f} times the plain step (quartiles {low:.2f} to {high:.2f})\n")
    print(f"{'':20} {'plain':>9} {args.name[:16]:>16}")
    print(f"{'step, ms':20} {cost.plain_seconds * 1e3:9.1f} {cost.seconds * 1e3:16.1f}")
    for part in PARTS:
        print(f"{'  ' + part:20} {cost.plain_parts[part] * 1e3:9.1f} {cost.parts[part] * 1e3:16.1f}")
    print(f"{'peak memory, MB':20} {cost.plain_peak:9.0f} {cost.peak:16.0f}")
    print("\nlargest operators: " + ", ".join(f"{name} {share:.0%}" for name, share in cost.operators))
    return 0
