"""`zslx interventions`: list, show, write, check and time interventions."""

from __future__ import annotations

import argparse
import json
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="every intervention that can be asked for")
    listing.add_argument(
        "--json", action="store_true", help="a list of objects: name family source settings cost status"
    )
    show = actions.add_parser("show", help="the card of one: what it does, settings, cost, source")
    show.add_argument("name")
    show.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    return {"list": run_list, "show": run_show}[args.action](args)


def run_list(args: argparse.Namespace) -> int:
    from zslx.registry import describe, discover

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


def run_show(args: argparse.Namespace) -> int:
    from zslx.registry import describe, discover, resolve

    sources = discover()
    name = args.name.removeprefix("placebo:")
    if name not in sources:
        resolve(name)
    card = describe(name, sources[name])
    if args.json:
        print(json.dumps(card, indent=1))
        return 0
    print(f"{card['name']} ({card['family']})   status: {card['status']}\n")
    print(card["description"])
    print(f"\nsource   {card['source'] or '-'}\ncost     {card['cost'] or '-'}   (1.00 is the plain step)")
    print(f"placebo  {'placebo:' + name if card['placebo'] else 'none; compare with an equally tuned baseline'}")
    print("settings" if card["settings"] else "settings none")
    for s in card["settings"]:
        print(f"  {name}.{s['name']}={s['default']}   {s['help']}{allowed(s)}")
    return 0


def allowed(setting: dict[str, Any]) -> str:
    if setting.get("choices"):
        return f"  [{', '.join(map(str, setting['choices']))}]"
    if "low" in setting or "high" in setting:
        return f"  [{setting.get('low', '')} .. {setting.get('high', '')}]"
    return ""
