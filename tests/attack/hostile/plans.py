"""Plans as JSON."""

import json

from hostile.samples import PLAN, Sample, plan


def plans():
    """Plans as JSON."""
    made = []

    def add(name, content, *, refused=True):
        text = json.dumps(content).encode() if isinstance(content, dict) else content
        made.append(Sample(PLAN, f"plan {name}", ".json", text, refused))

    good = plan()

    def swap(**changes):
        return good | {"swaps": [good["swaps"][0] | changes]}

    def resize(**changes):
        fields = {"target": "", "call": 0, "mode": "bilinear", "guide": ["input"], "guide_scale": 0.3}
        fields |= {"learn_scale": False, "footprint": 2, "deviation": None, "after_activation": True}
        return good | {"resizes": [fields | {"target_alias": None, "guide_alias": [None]} | changes]}

    add("deep", b"[" * 200_000)
    add("deep dict", b'{"swaps":' * 200_000)
    add("big", lambda: b"[" + b"[]," * 2**25 + b"[]]")
    add("swap twice", good | {"swaps": good["swaps"] * 2}, refused=False)
    add("ten thousand swaps", good | {"swaps": good["swaps"] * 10_000}, refused=False)
    add("huge number", json.dumps(swap()).replace("0.3", "9" * 400).encode())
    add("huge exponent", json.dumps(swap()).replace("0.3", "1e999").encode())
    add("not utf-8", b"\xff\xfe{}")
    add("with a mark", b"\xef\xbb\xbf" + json.dumps(good).encode(), refused=False)
    add("half a character", swap(target="\ud800"), refused=False)
    add("escapes", swap(target="a\x1b[2J\nb"), refused=False)
    odd = [None, True, -1, 0, 2**40, 10**14, 0.5, "", "x", [], {}, [[]], [None], [1, 2, 3], ["x"] * 1000, "." * 100]
    for key in good["swaps"][0]:
        for index, value in enumerate(odd):
            add(f"{key} {index}", swap(**{key: value}), refused=False)
    for key in ("target", "call", "mode", "guide", "guide_scale", "footprint", "guide_alias", "target_alias"):
        for index, value in enumerate(odd):
            add(f"resize {key} {index}", resize(**{key: value}), refused=False)
    for kernel in (
        "inv_1_0.5_fixed",
        "inv_1e308_1e308_fixed",
        "inv_0_0_fixed",
        "inv_nan_1_fixed",
        "inv_-1_-1_fixed",
        "inv__",
        "inv_1_1",
    ):
        add(f"kernel {kernel}", swap(kernel=kernel), refused=False)
    for guide in (
        ["target"],
        ["head"],
        ["input"] * 300,
        ["guide", "guide"],
        [""],
        ["re:(a+)+$"],
        ["*"],
        ["__class__"],
    ):
        add(f"guide {guide[0]} {len(guide)}", swap(guide=guide, guide_alias=[]), refused=False)
    for target in ("", "target.weight", "__class__", "guide", "stem", "head", "input", "..", "pool", "*", "target."):
        add(f"target {target}", swap(target=target), refused=False)
    add("hooks", good | {"method": "hooks"}, refused=False)
    add("hooks with odd taps", swap(taps=[["guide", 10**14]]) | {"method": "hooks"}, refused=False)
    add("hooks with taps of nowhere", swap(taps=[["nowhere", -5]]) | {"method": "hooks"}, refused=False)
    add("tap means of 1e-300", swap(conserve="mean", tap_means=[1e-300] * 9), refused=False)
    add("tap means of 1e308", swap(conserve="mean", tap_means=[1e308] * 9), refused=False)
    add("drift that is huge", good | {"drift": 10**14}, refused=False)
    return made
